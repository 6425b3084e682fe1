"""The formulas of bits and MACs: the paper's numbers (docs/paper.md, section 3), and properties for any sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.comm.codecs import CODECS
from testbed.methods import load_method, method_names
from testbed.methods.astra import Astra
from testbed.methods.sequence import reorders
from testbed.models.shape import ModelShape
from tests.methods.small import PAPER, U_BITS, VIT


def macs_without_encoding(shape: ModelShape, world: int) -> int:
    """ASTRA's work as the paper counts it."""
    encode = shape.layers * 1024 * shape.tokens // world * shape.hidden
    return Astra().macs(shape, 0, world) - encode


def test_the_unit_is_the_papers() -> None:
    assert pytest.approx(18.87, abs=0.005) == U_BITS / 1e6


def test_sequence_receives_one_gather_per_layer() -> None:
    method = load_method("sequence")
    assert method.received_bits(PAPER, 4) == (12 * U_BITS,) * 4
    row_bits = 768 * 32  # the class token makes rank 0's share one row longer, and the others receive that row
    assert method.received_bits(VIT, 4) == (12 * U_BITS, *[12 * (U_BITS + row_bits)] * 3)


def test_tensor_receives_four_units_per_layer() -> None:
    method = load_method("tensor")
    assert method.received_bits(PAPER, 4) == (4 * 12 * U_BITS,) * 4
    assert method.received_bits(VIT, 4)[0] == pytest.approx(4 * 12 * U_BITS * 1025 / 1024)


def test_pipeline_receives_each_hop_once() -> None:
    assert load_method("pipeline").received_bits(PAPER, 4) == (0, *[1024 * 768 * 32] * 3)


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", "topk"])
def test_pipeline_hops_shrink_with_the_codec(codec: str) -> None:
    message = 8 * CODECS[codec].encoded_bytes(1024 * 768)
    assert load_method("pipeline", codec=codec).received_bits(PAPER, 4) == (0, message, message, message)


@pytest.mark.parametrize(
    # units of (N - 1) / N * T * D numbers in a layer, of rank 0 and of other ranks (docs/baselines.md, section 2)
    ("name", "settings", "units"),
    [
        ("tensor", {"sync": "star"}, (8, 8 / 3)),
        ("tensor", {"sync": "gather"}, (8, 8)),
        ("megatron_sp", {}, (4, 4)),
        ("galaxy", {}, (4, 4)),
        ("sequence", {"gather": "kv"}, (2, 2)),
        ("ring", {}, (2, 2)),
        ("ring", {"directions": 2}, (2, 2)),
        ("block", {"blocks": 1}, (1 / 12, 1 / 12)),
        ("block", {"blocks": 6}, (6 / 12, 6 / 12)),
        ("block", {"blocks": 2, "sync": "sp"}, ((2 + 3 / 4) / 12, (2 + 3 / 4) / 12)),  # each all-to-all: 1/N of a unit
        ("prism", {"segment_means": 16}, (16 / 256, 16 / 256)),
    ],
)
def test_baselines_receive_the_documented_volumes(
    name: str, settings: dict[str, Any], units: tuple[float, float]
) -> None:
    rank0, others = (12 * U_BITS * each for each in units)
    assert load_method(name, **settings).received_bits(PAPER, 4) == pytest.approx((rank0, others, others, others))
    for codec, ratio in (("fp16", 2), ("int8", 4 * 32 / 34), ("int4", 4 * 32 / 18), ("topk", 6.4)):
        compressed = load_method(name, **settings, codec=codec).received_bits(PAPER, 4)
        assert ratio * compressed[0] == pytest.approx(rank0)
        # A lossy star sends the same messages; a lossy ring all-reduce has the volume of the exact one.
        assert ratio * compressed[1] == pytest.approx(others)


def test_a_decoupled_layer_computes_what_the_papers_block_parallelism_does() -> None:
    """The fit of docs/paper.md, section 3: 0.135 s where one device takes 0.350, as if all layers were decoupled."""
    layer = load_method("single").macs(PAPER, 0, 4) / 12
    decoupled = (load_method("block", blocks=1).macs(PAPER, 0, 4) - layer) / 11
    assert decoupled / layer == pytest.approx(0.135 / 0.350, abs=0.001)


def test_sequence_with_codecs_takes_the_documented_time() -> None:
    """Seconds of communication alone at 10 Mbps: docs/baselines.md, section 5."""
    for codec, seconds in (("fp32", 22.6), ("int8", 6.0), ("int4", 3.2)):
        bits = load_method("sequence", codec=codec).received_bits(PAPER, 4)[0]
        assert bits / 10e6 == pytest.approx(seconds, abs=0.05)


@pytest.mark.parametrize(("groups", "compression"), [(1, 2457.6), (16, 153.6), (32, 76.8)])
def test_astra_compresses_as_reported(groups: int, compression: float) -> None:
    method = Astra(groups=groups)
    bits = method.received_bits(PAPER, 4)
    assert bits == (12 * 768 * groups * 10,) * 4
    assert 12 * U_BITS / bits[0] == pytest.approx(compression)
    class_bits = 2 * 3 * 192 * 32  # reduce-scatter and all-gather of one class token
    assert method.received_bits(VIT, 4) == (bits[0] + class_bits,) * 4


def test_astra_messages_end_on_whole_bytes() -> None:
    shape = replace(PAPER, layers=1, tokens=7)  # shares 4 and 3: 12 and 9 indices of 5 bits in 8 and 6 bytes
    assert Astra(groups=3, codebook_size=32).received_bits(shape, 2) == (8 * 6, 8 * 8)


def test_astra_compute_ratio_is_the_papers() -> None:
    single = load_method("single").macs(PAPER, 0, 4)
    assert single == 12 * (12 * 1024 * 768**2 + 2 * 1024**2 * 768)
    assert macs_without_encoding(PAPER, 4) / single == pytest.approx(0.352, abs=5e-4)
    assert macs_without_encoding(VIT, 4) / load_method("single").macs(VIT, 0, 4) == pytest.approx(0.352, abs=0.002)
    assert Astra().macs(PAPER, 0, 4) / single == pytest.approx(0.375, abs=1e-3)  # encoding is real work


@pytest.mark.parametrize(
    ("groups", "bits_per_s", "speedup"), [(1, 10e6, 2.64), (1, 20e6, 2.74), (32, 20e6, 1.27)], ids=str
)
def test_the_cost_model_gives_the_papers_speedups(groups: int, bits_per_s: float, speedup: float) -> None:
    macs_per_s = load_method("single").macs(PAPER, 0, 4) / 0.350
    astra_s = (
        macs_without_encoding(PAPER, 4) / macs_per_s + Astra(groups=groups).received_bits(PAPER, 4)[0] / bits_per_s
    )
    assert 0.350 / astra_s == pytest.approx(speedup, rel=0.02)


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([1, 2, 4, 8]), st.sampled_from([8, 24, 64, 768]))
def test_sequence_reorders_products_by_the_rule_of_voltage(own: int, others: int, heads: int, hidden: int) -> None:
    shape = replace(PAPER, hidden=hidden, heads=heads, tokens=own + others)
    rows, width = own + others, hidden // heads
    # multiplied out: 1/P - 1/T > (F - F_H) / (F F_H)
    assert reorders(shape, own) == (others * hidden * width > (hidden - width) * own * rows)


shapes = st.builds(
    lambda layers, hidden, tokens, class_tokens: ModelShape(
        layers, 8 * hidden, 1, 32 * hidden, tokens, class_tokens, 12, 10
    ),
    st.integers(8, 12),
    st.integers(1, 40),
    st.integers(8, 400),
    st.integers(0, 1),
)


@given(shapes, st.integers(1, 8))
def test_all_ranks_together_receive_what_is_sent(shape: ModelShape, world: int) -> None:
    row_bits = shape.hidden * 32
    all_rows = (world - 1) * shape.sequence * row_bits
    assert sum(load_method("tensor").received_bits(shape, world)) == 4 * shape.layers * all_rows
    assert sum(load_method("sequence").received_bits(shape, world)) == shape.layers * all_rows
    assert sum(load_method("sequence", gather="kv").received_bits(shape, world)) == 2 * shape.layers * all_rows
    for name, settings in (("megatron_sp", {}), ("galaxy", {}), ("tensor", {"sync": "star"})):
        assert sum(load_method(name, **settings).received_bits(shape, world)) == 4 * shape.layers * all_rows
    assert sum(load_method("block", blocks=1).received_bits(shape, world)) == all_rows
    assert sum(load_method("pipeline").received_bits(shape, world)) == all_rows
    code_bits = (world - 1) * shape.layers * shape.tokens * 8  # one byte per token and layer: no padding
    class_bits = 2 * (world - 1) * shape.class_tokens * row_bits
    assert sum(Astra(groups=1, codebook_size=256).received_bits(shape, world)) == code_bits + class_bits


@given(shapes, st.integers(1, 8))
def test_a_pipeline_splits_the_work_and_repeats_none(shape: ModelShape, world: int) -> None:
    pipeline = load_method("pipeline")
    assert sum(pipeline.macs(shape, rank, world) for rank in range(world)) == load_method("single").macs(
        shape, 0, world
    )


@given(shapes)
def test_on_one_device_all_methods_do_the_same_work(shape: ModelShape) -> None:
    methods = [load_method(name) for name in method_names() if name != "block"]
    methods += [load_method("block", blocks=shape.layers, sync=sync) for sync in ("ag", "sp")]
    methods += [load_method("block", blocks=1), load_method("sequence", gather="kv")]
    assert len({method.macs(shape, 0, 1) for method in methods}) == 1
