"""Verification before measurement: correct passes are accepted, and each kind of fault is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.measurement.model_inputs import Assets
from experiments.measurement.verify import compare_outputs, verify
from testbed.astra.codebooks import save_codebooks
from testbed.astra.quantized import Quantized, quantized_width
from testbed.astra.quantizer import Codebooks
from testbed.cluster.worker import ForwardTiming
from testbed.comm.tcp import TcpGroup
from testbed.device.clock import DeviceClock
from testbed.methods import load_method
from testbed.methods.astra import Astra
from testbed.methods.base import Method
from testbed.models.decoders import DecoderChoice
from testbed.models.weights import ModelChoice
from testbed.output import Output
from tests.conftest import run_ranks
from tests.methods.small import layer_inputs, pixels, small_model
from tests.methods.test_astra_optimizations import TOKENS, decoder

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("sequence", {"codec": "int8"}),
    ("tensor", {"codec": "int4"}),
    ("galaxy", {"codec": "topk"}),
    ("block", {"blocks": 2}),
    ("prism", {"segment_means": 3}),
    ("ring", {}),
]


def small_assets() -> Assets:
    model = small_model("plain")
    inputs = pixels(model)
    hidden = layer_inputs(model, inputs)[-1][1:]
    choice = ModelChoice("plain", 4, 48, 4, 2, 7, False)
    return Assets(choice, model, [], inputs, hidden, model(inputs)[0].detach(), {}, 1e9)


def passes(method: Method, assets: Assets, world: int) -> list[tuple[Output, ForwardTiming]]:
    def main(group: TcpGroup) -> tuple[Output, ForwardTiming]:
        clock = DeviceClock()
        output = method.forward(assets.inputs, method.shard(assets.model, group.rank, world), group, clock)
        received = group.traffic.received_bytes
        return output, ForwardTiming(0, 0, 0, 0, 0, 0, 0, received, clock.macs, clock.moved_bytes, 0, 0)

    return run_ranks(world, main)


@pytest.mark.parametrize(("name", "settings"), METHODS, ids=str)
def test_correct_passes_are_accepted_and_faults_named(name: str, settings: dict[str, Any]) -> None:
    method, assets = load_method(name, **settings), small_assets()
    ranks = passes(method, assets, 2)
    good = verify(method, 2, ranks, assets)
    assert good.ok and good.max_abs_err < 1e-4, good.fault
    (output, done), other = ranks
    assert output.hidden is not None
    shifted = replace(output, hidden=output.hidden + 1e-3)
    assert "outputs differ by 1.0" in verify(method, 2, [(shifted, done), other], assets).fault
    missing = replace(done, received_bytes=done.received_bytes - 1)
    assert "rank 0 received" in verify(method, 2, [(output, missing), other], assets).fault
    if output.messages:
        damaged = [torch.zeros_like(output.messages[0]), *output.messages[1:]]
        fault = verify(method, 2, [(replace(output, messages=damaged), done), other], assets).fault
        assert "what was sent differs from the simulation's: a message of rank 0 is" in fault


@pytest.mark.parametrize(
    ("largest", "difference", "accepted"), [(5.0, 3e-4, False), (45.0, 3e-4, True), (45.0, 6e-4, False)]
)
def test_the_tolerance_grows_with_the_references_magnitude(largest: float, difference: float, accepted: bool) -> None:
    hidden, logits = torch.full((3, 4), largest), torch.zeros(2)
    output = Output(hidden + difference, 0, logits)
    assert (compare_outputs([output], hidden, logits)[1] == "") == accepted
    assert compare_outputs([replace(output, logits=torch.full((2,), torch.nan))], hidden, logits)[1]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize(("quantized", "anchor_tokens", "num_quantizers"), [("residual", 0, 1), ("keys_values", 2, 2)])
def test_a_decoder_is_compared_with_its_simulation(
    world: int, quantized: Quantized, anchor_tokens: int, num_quantizers: int, tmp_path: Path
) -> None:
    model = decoder("llama")
    method = Astra(4, 32, quantized=quantized, anchor_tokens=anchor_tokens, num_quantizers=num_quantizers)
    generator = torch.Generator().manual_seed(6)
    width = quantized_width(model.shape, quantized)
    codebooks = 0.3 * torch.randn(model.shape.layers, num_quantizers * 4, 32, width // 4, generator=generator)
    save_codebooks(Codebooks(codebooks), tmp_path / "codebooks.safetensors")
    method.attach(codebooks)
    ids = torch.randint(31, (1, TOKENS), generator=generator)
    hidden = torch.zeros(
        TOKENS, model.shape.hidden
    )  # the plain model's; quantized methods must not be compared with it
    files = {method.codebook_spec: tmp_path / "codebooks.safetensors"}
    assets = Assets(DecoderChoice("llama", model.config), model, [], ids, hidden, torch.zeros(31), files, 1e9)
    ranks = passes(method, assets, world)
    good = verify(method, world, ranks, assets)
    assert good.ok and good.max_abs_err < 1e-4 and good.ties == 0, good.fault
    if world > 1:
        (output, done), others = ranks[0], ranks[1:]
        assert output.codes is not None
        other = replace(output, codes=(output.codes + 1) % 32)
        assert "what was sent differs" in verify(method, world, [(other, done), *others], assets).fault


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_single_is_the_plain_decoder(kind: str) -> None:
    model, method = decoder(kind), load_method("single")
    ids = torch.randint(31, (1, TOKENS), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        expected = model(ids)[0, -1]
    choice = DecoderChoice(kind, model.config)
    assets = Assets(choice, model, [], ids, torch.zeros(TOKENS, model.shape.hidden), expected, {}, 1e9)
    ((output, done),) = passes(method, assets, 1)
    torch.testing.assert_close(output.logits, expected)
    assert output.hidden is not None and output.hidden.shape == (TOKENS, model.shape.hidden)
    assert done.macs == method.macs(model.shape, 0, 1) == Astra().macs(model.shape, 0, 1)
