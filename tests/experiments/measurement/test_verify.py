"""Verification before measurement: correct passes are accepted, and each kind of fault is named."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.measurement import verify as verify_module
from experiments.measurement.model_inputs import Assets, CodebookFiles, Model, Result, one_device, wide
from experiments.measurement.verify import FACTOR, FLOOR_ULPS, compare_outputs, verify
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
from testbed.models.weights import ModelChoice, in_float64
from testbed.output import Output
from testbed.work import count_kernels
from tests.conftest import run_ranks
from tests.methods.small import pixels, random_codebooks, small_model
from tests.methods.test_astra_optimizations import TOKENS, decoder

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("sequence", {"codec": "int8"}),
    ("tensor", {"codec": "int4"}),
    ("galaxy", {"codec": "topk"}),
    ("block", {"blocks": 2}),
    ("prism", {"segment_means": 3}),
    ("ring", {}),
    ("single", {}),
    ("pipeline", {"codec": "fp16"}),
    ("megatron_sp", {"codec": "int8"}),
    ("block", {"blocks": 2, "sync": "sp", "codec": "int8"}),
    ("prism", {"segment_means": 3, "codec": "topk"}),
    ("sequence", {"gather": "kv", "codec": "fp16"}),
]
PLAIN = ModelChoice("plain", 4, 48, 4, 2, 7, False)


def assets_for(
    choice: ModelChoice | DecoderChoice, model: Model, inputs: torch.Tensor, codebooks: CodebookFiles | None = None
) -> Assets:
    exact = one_device(in_float64(choice, model, model.shape.tokens), wide(inputs))
    return Assets(choice, model, [], inputs, one_device(model, inputs), exact, codebooks or {}, 1e9)


def small_assets(codebooks: CodebookFiles | None = None) -> Assets:
    model = small_model("plain")
    return assets_for(PLAIN, model, pixels(model), codebooks)


def passes(
    method: Method, assets: Assets, world: int, models: dict[int, Model] | None = None
) -> list[tuple[Output, ForwardTiming]]:
    """models: of ranks that have another one."""

    def main(group: TcpGroup) -> tuple[Output, ForwardTiming]:
        clock, model = DeviceClock(), (models or {}).get(group.rank, assets.model)
        output = method.forward(assets.inputs, method.shard(model, group.rank, world), group, clock)
        received = group.traffic.received_bytes
        return output, ForwardTiming(0, 0, 0, 0, 0, 0, 0, received, count_kernels(clock.works), 0, 0, 0, 0)

    return run_ranks(world, main)


@pytest.mark.parametrize(("name", "settings"), METHODS, ids=str)
def test_correct_passes_are_accepted_and_faults_named(name: str, settings: dict[str, Any]) -> None:
    method, assets = load_method(name, **settings), small_assets()
    ranks = passes(method, assets, 2)
    good = verify(method, 2, ranks, assets)
    assert good.ok and good.max_abs_err <= good.allowed_abs_err < 5e-5, good.fault
    holder = next(rank for rank, (output, _) in enumerate(ranks) if output.hidden is not None)
    output, done = ranks[holder]
    assert output.hidden is not None
    shifted = replace(output, hidden=output.hidden + 1e-3)
    assert "outputs differ by 1.0" in verify(method, 2, with_rank(ranks, holder, shifted), assets).fault
    slightly = replace(output, hidden=output.hidden + 5e-5)  # more than float32 rounds in a model of this size
    assert "outputs differ by " in verify(method, 2, with_rank(ranks, holder, slightly), assets).fault
    missing = [(output, replace(done, received_bytes=done.received_bytes - 1)) for output, done in ranks]
    assert "rank 0 received" in verify(method, 2, missing, assets).fault
    if messages := ranks[0][0].messages:
        damaged = replace(ranks[0][0], messages=[torch.zeros_like(messages[0]), *messages[1:]])
        fault = verify(method, 2, with_rank(ranks, 0, damaged), assets).fault
        assert "what was sent differs from the simulation's: a message of rank 0 is" in fault


def with_rank(
    ranks: list[tuple[Output, ForwardTiming]], rank: int, output: Output
) -> list[tuple[Output, ForwardTiming]]:
    """The same passes with another output of one rank."""
    return [(output if each == rank else before, done) for each, (before, done) in enumerate(ranks)]


def astra_passes(tmp_path: Path, world: int = 2) -> tuple[Method, Assets, list[tuple[Output, ForwardTiming]]]:
    method, path = Astra(4, 32), tmp_path / "codebooks.safetensors"
    codebooks = random_codebooks(small_model("plain"), 4, 32)
    save_codebooks(Codebooks(codebooks), path)
    method.attach(codebooks)
    assets = small_assets({method.codebook_spec: path})
    return method, assets, passes(method, assets, world)


def test_a_wrong_code_a_dropped_row_and_a_swapped_rank_are_named(tmp_path: Path) -> None:
    method, assets, ranks = astra_passes(tmp_path)
    assert verify(method, 2, ranks, assets).ok
    (first, _), (second, _) = ranks
    assert first.codes is not None and first.hidden is not None and second.hidden is not None
    codes = first.codes.clone()
    codes[1, 3, 2] = (codes[1, 3, 2] + 1) % 32
    fault = verify(method, 2, with_rank(ranks, 0, replace(first, codes=codes)), assets).fault
    assert "codes at layer 1, token 3, group 2" in fault
    dropped = replace(first, hidden=first.hidden[:-1])
    assert verify(method, 2, with_rank(ranks, 0, dropped), assets).fault == "no rank holds part of the result"
    rows = first.hidden.clone()
    rows[4] = rows[5]
    repeated = replace(first, hidden=rows)
    assert "outputs differ by" in verify(method, 2, with_rank(ranks, 0, repeated), assets).fault
    count = min(len(first.hidden), len(second.hidden))
    swapped = [
        replace(mine, hidden=torch.cat([theirs.hidden[:count], mine.hidden[count:]]))
        for mine, theirs in ((first, second), (second, first))
        if mine.hidden is not None and theirs.hidden is not None
    ]
    exchanged = [(output, done) for output, (_, done) in zip(swapped, ranks, strict=True)]
    assert "outputs differ by" in verify(method, 2, exchanged, assets).fault


# Whose messages are exact, or hold codes. A lossy codec may hide an error that is smaller than its step.
PRECISE = [("sequence", {}), ("tensor", {}), ("galaxy", {}), ("pipeline", {}), ("ring", {}), ("megatron_sp", {})]
PRECISE += [("block", {"blocks": 2}), ("prism", {"segment_means": 3}), ("astra", {})]


@pytest.mark.parametrize(("name", "settings"), PRECISE, ids=str)
def test_one_weight_of_one_rank_that_is_off_by_a_thousandth_is_found(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    if name == "astra":
        method, assets, _ = astra_passes(tmp_path)
    else:
        method, assets = load_method(name, **settings), small_assets()
    other = copy.deepcopy(assets.model)
    with torch.no_grad():
        other.blocks[-1].attn.v.weight[-1, 0] += 1e-3  # rank 1 has the last head and the last layer
    ranks = passes(method, assets, 2, {1: other})
    found = verify(method, 2, ranks, assets)
    assert "outputs differ by" in found.fault and found.max_abs_err > found.allowed_abs_err


@pytest.mark.parametrize(("name", "settings"), METHODS, ids=str)
def test_the_reference_computes_in_float64_throughout(name: str, settings: dict[str, Any]) -> None:
    method, assets = load_method(name, **settings), small_assets()
    if not method.exact:
        outputs = [output for output, _ in passes(method, assets, 2)]
        single, _ = verify_module._simulated(method, 2, outputs, assets, assets.model, assets.inputs)
        exact, _ = verify_module._simulated(method, 2, outputs, assets, *assets.in_float64)
    else:
        single, exact = assets.result, assets.exact
    for one, other in zip(single, exact, strict=True):
        assert (one.dtype, other.dtype) == (torch.float32, torch.float64)
        assert 0 < (one - other).abs().max() < 1e-5
        # computed in it, not only stored: its numbers are none of float32's
        assert (other.float().double() != other).float().mean() > 0.9


def test_the_limit_follows_the_rounding_of_one_process() -> None:
    generator = torch.Generator().manual_seed(4)
    exact = Result((40 * torch.rand(50, 8, generator=generator)).double(), torch.rand(5, generator=generator).double())
    for rounding in (0.0, 1e-4):  # of the hidden states; that of the logits is smaller
        single = Result((exact.hidden + rounding).float(), exact.logits.float())
        largest = exact.hidden.abs().max().item()
        limit = FACTOR * rounding + FLOOR_ULPS * 2.0**-23 * largest
        for share, accepted in ((0.8, True), (1.2, False)):
            output = Output((exact.hidden + share * limit).float(), 0, single.logits)
            error, allowed, fault = compare_outputs([output], single, exact)
            assert (fault == "") == accepted and error == pytest.approx(share * limit, rel=0.05)
            assert allowed == pytest.approx(limit, rel=0.1)
            scale = exact.logits.abs().max().item() / largest  # the limit of logits is the same in proportion
            output = Output(single.hidden, 0, (exact.logits + share * limit * scale).float())
            assert (compare_outputs([output], single, exact)[2] == "") == accepted
    nan = Output(single.hidden, 0, torch.full((5,), torch.nan))
    assert compare_outputs([nan], single, exact)[2]
    zero = Result(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    for difference, accepted in ((0.0, True), (1e-9, False)):
        outputs = [Output(zero.hidden.float() + difference, 0, zero.logits.float())]
        assert (compare_outputs(outputs, zero, zero)[2] == "") == accepted


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
    files = {method.codebook_spec: tmp_path / "codebooks.safetensors"}
    assets = assets_for(DecoderChoice("llama", model.config), model, ids, files)
    plain = Result(torch.zeros_like(assets.result.hidden), torch.zeros_like(assets.result.logits))
    assets = replace(assets, result=plain, exact=plain)  # quantized methods must not be compared with the plain model
    ranks = passes(method, assets, world)
    good = verify(method, world, ranks, assets)
    assert good.ok and good.max_abs_err <= good.allowed_abs_err < 5e-5 and good.ties == 0, good.fault
    if world > 1:
        output = ranks[0][0]
        assert output.codes is not None
        other = replace(output, codes=(output.codes + 1) % 32)
        assert "what was sent differs" in verify(method, world, with_rank(ranks, 0, other), assets).fault


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_single_is_the_plain_decoder(kind: str) -> None:
    model, method = decoder(kind), load_method("single")
    ids = torch.randint(31, (1, TOKENS), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        expected = model(ids)[0, -1]
    assets = assets_for(DecoderChoice(kind, model.config), model, ids)
    ((output, done),) = ranks = passes(method, assets, 1)
    assert verify(method, 1, ranks, assets).ok
    torch.testing.assert_close(output.logits, expected)
    assert output.hidden is not None and output.hidden.shape == (TOKENS, model.shape.hidden)
    macs = sum(count * kernel.macs for kernel, count in done.kernels.items())
    assert macs == method.macs(model.shape, 0, 1) == Astra().macs(model.shape, 0, 1)
