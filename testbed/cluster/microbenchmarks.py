"""Single communication operations, timed on one rank: what calibration, fidelity and ``make bench`` measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from testbed.cluster.synchronized_start import start_together
from testbed.comm.group import Group
from testbed.device.priority import realtime


def time_operation(
    group: Group, operation: str, payload_bytes: int, repeats: int, peers: Sequence[int] = ()
) -> list[tuple[float, float]]:
    """Run one operation ``repeats`` times; all ranks start each repeat together.

    payload_bytes: what each rank contributes. peers: this rank's partners in ``exchange``. Returns (begin, end) of each
    repeat in monotonic seconds.

    all_gather, all_reduce   the collective of that name
    one_way, both_ways       rank 0 to rank 1, 2 to 3, and so on, in one or both directions; an odd last rank waits
    incast_all               all other ranks send to rank 0 at the same time
    incast_ordered           all other ranks send to rank 0, each after rank 0 has asked it to
    exchange                 all messages between this rank and ``peers``, in both directions
    nothing                  only the common start
    """
    local = torch.zeros(payload_bytes, dtype=torch.uint8)
    partner, others = group.rank ^ 1, range(1, group.world)
    run: dict[str, Callable[[], object]] = {
        "all_gather": lambda: group.all_gather(local, [payload_bytes] * group.world),
        "all_reduce": lambda: group.all_reduce(local.view(torch.float32)),
        "one_way": lambda: (
            group.recv([payload_bytes], torch.uint8, partner) if group.rank % 2 else group.send(local, partner)
        ),
        "both_ways": lambda: group.sendrecv(local, partner, [payload_bytes], torch.uint8, partner),
        "incast_all": lambda: (
            group.exchange_async({0: local}, {}, senders=len(others))
            if group.rank
            else group.exchange_async({}, dict.fromkeys(others, payload_bytes))
        ).wait(),
        "incast_ordered": lambda: _send_when_asked(group, local) if group.rank else _ask_each(group, payload_bytes),
        "exchange": lambda: group.exchange_async(
            dict.fromkeys(peers, local), dict.fromkeys(peers, payload_bytes)
        ).wait(),
        "nothing": lambda: None,
    }
    if operation in ("one_way", "both_ways") and partner >= group.world:
        operation = "nothing"
    times = []
    with realtime():
        for _ in range(repeats):
            start_together(group)
            begin = time.monotonic()
            run[operation]()
            times.append((begin, time.monotonic()))
    return times


def _ask_each(group: Group, payload_bytes: int) -> None:
    """Receive from one rank after another; each sends when it is asked."""
    for peer in range(1, group.world):
        group.send(torch.zeros(1, dtype=torch.uint8), peer)
        group.recv([payload_bytes], torch.uint8, peer)


def _send_when_asked(group: Group, local: Tensor) -> None:
    """Send to rank 0 when it asks."""
    group.recv([1], torch.uint8, 0)
    group.send(local, 0)
