"""Cost models of links other than a star assume the traffic that methods really send."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from testbed.comm.exchange import Exchange, Operation
from testbed.comm.pacing import Unpaced
from testbed.comm.routes import RankLinks, Route
from testbed.comm.tcp import TcpGroup
from testbed.comm.wire import Wire
from testbed.device.clock import DeviceClock
from testbed.device.spec import Device
from testbed.methods import load_method
from testbed.methods.astra import Astra
from tests.conftest import run_ranks
from tests.methods.passes import EXACT
from tests.methods.small import pixels, random_codebooks, small_model
from topologies.link_graph import link_graph, star

WORLD = 4
SLOW_TRUNK = link_graph(("h1/2 d0", "h2/2 d1", "d0 d1"), 1e-4, WORLD)  # so slow that it alone determines the time
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{label: method for label, method in EXACT.items() if label != "single"},
    "tensor int8": ("tensor", {"codec": "int8"}),
    "prism": ("prism", {"segment_means": 4}),
    "block": ("block", {"blocks": 2}),
    "astra": ("astra", {"groups": 48, "codebook_size": 64}),
}


@pytest.mark.parametrize("label", METHODS)
def test_the_trunk_carries_what_the_cost_model_predicts(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings = METHODS[label]
    method, model = load_method(name, **settings), small_model("layer_scale")
    inputs = pixels(model)
    if isinstance(method, Astra):
        method.attach(random_codebooks(model, method.groups, method.codebook_size))
    sent: Counter[tuple[int, int]] = Counter()
    queue = Exchange.queue

    def counted(wire: Exchange, name: str, sends: dict[int, memoryview], receives: Any, senders: int = 1) -> Operation:
        sent.update({(wire.rank, peer): len(payload) for peer, payload in sends.items()})
        return queue(wire, name, sends, receives, senders)

    monkeypatch.setattr(Exchange, "queue", counted)

    def rank_main(group: TcpGroup) -> None:
        routes = {peer: Route(Unpaced(), 1e6) for peer in range(WORLD) if peer != group.rank}
        group.set_links(RankLinks(routes, 1e6, SLOW_TRUNK.suited, SLOW_TRUNK.subnets))
        method.forward(inputs, method.shard(model, group.rank, WORLD), group, DeviceClock())

    run_ranks(WORLD, rank_main)
    busy_s = SLOW_TRUNK.busy_s([(*pair, size) for pair, size in sent.items()], 1.0)
    forth_s, back_s = busy_s["d0", "d1"], busy_s["d1", "d0"]
    rate_bps = SLOW_TRUNK.relative_rate(method.traffic, SLOW_TRUNK.suited)
    modeled_s = method.predicted_s(model.shape, [Device()] * WORLD, Wire(rate_bps))
    # Partial sums to the root and sums from it follow each other; otherwise both directions are busy at the same time.
    carried_s = forth_s + back_s if "root" in method.traffic else max(forth_s, back_s)
    assert modeled_s == pytest.approx(carried_s, rel=0.1)  # shares differ by one row
    assert star(WORLD).relative_rate(method.traffic, "pairwise") == pytest.approx(1)
