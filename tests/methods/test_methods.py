"""Each method on real TCP: correct outputs, bytes and MACs as its formulas say, a replay that computes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from testbed.astra.quantizer import Quantizer
from testbed.astra.reference_vit import simulate
from testbed.comm.group import even_shares
from testbed.comm.tcp import TcpGroup
from testbed.device.partition import shares_by_speed
from testbed.errors import ConfigError
from testbed.methods import load_method, method_names
from testbed.methods.astra import Astra
from testbed.models.shape import ModelShape
from tests.conftest import run_ranks
from tests.methods.passes import EXACT, SPLITS, check_accounts, execute_and_replay, joined_hidden
from tests.methods.small import CONFIGS, layer_inputs, pixels, random_codebooks, small_model

ASTRA = {
    "astra": {"groups": 4, "codebook_size": 64},
    "astra, padded messages": {"groups": 3, "codebook_size": 32},
    "astra, one group": {"groups": 1, "codebook_size": 256},
    "astra, pre-rotated": {"groups": 4, "codebook_size": 64, "pre_rotation": "pca"},
    "astra, lut of pre-rotated": {"groups": 4, "codebook_size": 64, "pre_rotation": "pca", "optimizations": "lut"},
    "astra, dedup of pre-rotated": {"codebook_size": 64, "pre_rotation": "pca", "optimizations": "dedup"},
    "astra, two quantizers": {"groups": 3, "codebook_size": 32, "num_quantizers": 2},
}


@pytest.mark.parametrize("size", CONFIGS)
@pytest.mark.parametrize(("world", "speeds"), SPLITS, ids=str)
@pytest.mark.parametrize("variant", EXACT)
def test_exact_methods_equal_the_plain_model(variant: str, world: int, speeds: tuple[float, ...], size: str) -> None:
    name, settings = EXACT[variant]
    model, method = small_model(size), load_method(name, speeds, **settings)
    assert method.label == variant
    inputs = pixels(model)
    passes = execute_and_replay(method, model, inputs, world)
    check_accounts(passes, method, model)
    assert method.exact
    torch.testing.assert_close(
        joined_hidden(passes, model.shape.tokens), layer_inputs(model, inputs)[-1][1:], atol=1e-4, rtol=0
    )
    all_logits = [executed.output.logits for executed, _ in passes if executed.output.logits is not None]
    assert all_logits
    for logits in all_logits:
        torch.testing.assert_close(logits, model(inputs)[0].detach(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", CONFIGS)
@pytest.mark.parametrize(("world", "speeds"), SPLITS[1:], ids=str)
@pytest.mark.parametrize("settings", ASTRA.values(), ids=list(ASTRA))
def test_astra_equals_its_simulation(
    settings: dict[str, Any], world: int, speeds: tuple[float, ...], size: str
) -> None:
    model, method = small_model(size), load_method("astra", speeds, **settings)
    assert isinstance(method, Astra)
    stages = [
        random_codebooks(model, method.groups, method.codebook_size) / 2**stage
        for stage in range(method.num_quantizers)
    ]
    inputs, codebooks = pixels(model), torch.cat(stages, dim=1)
    layers, width = model.shape.layers, model.shape.hidden
    rotation = torch.linalg.qr(torch.randn(layers, width, width, generator=torch.Generator().manual_seed(1))).Q
    pre_rotation = None if method.pre_rotation == "none" else rotation.contiguous()
    method.attach(codebooks, pre_rotation)
    passes = execute_and_replay(method, model, inputs, world)
    check_accounts(passes, method, model)
    codes = torch.cat([executed.output.codes for executed, _ in passes if executed.output.codes is not None], dim=1)
    assert codes.shape == (model.shape.layers, model.shape.tokens, method.num_quantizers * method.groups)
    shares = [len(executed.output.hidden) for executed, _ in passes if executed.output.hidden is not None]
    assert shares == (list(shares_by_speed(model.shape.tokens, speeds)) if speeds else even_shares(sum(shares), world))
    expected = simulate(model, Quantizer(codebooks, method.num_quantizers, pre_rotation), inputs, shares, codes)
    assert expected.ties <= 2
    torch.testing.assert_close(joined_hidden(passes, model.shape.tokens), expected.hidden, atol=1e-4, rtol=0)
    for executed, _ in passes:
        assert executed.output.logits is not None
        torch.testing.assert_close(executed.output.logits, expected.logits, atol=1e-4, rtol=0)
    exact = layer_inputs(model, inputs)[-1][1:]
    assert (expected.hidden - exact).abs().max() > 1e-2, "random codebooks must change the output"


def test_astra_on_one_device_is_single() -> None:
    model = small_model("plain")
    inputs = pixels(model)
    ((astra, _),) = execute_and_replay(Astra(), model, inputs, 1)
    ((single, _),) = execute_and_replay(load_method("single"), model, inputs, 1)
    assert astra.output.hidden is not None and single.output.hidden is not None
    torch.testing.assert_close(astra.output.hidden, single.output.hidden, atol=1e-5, rtol=0)
    assert astra.counted_macs == single.counted_macs == Astra().macs(model.shape, 0, 1)
    assert astra.received_bits == 0


def test_astra_needs_matching_codebooks() -> None:
    model, method = small_model("plain"), Astra(groups=4, codebook_size=64)
    with pytest.raises(ConfigError, match=r"astra.codebooks.*must be \[layers, 4, 64, \.\.\.\]"):
        method.attach(torch.zeros(4, 4, 32, 12))
    with pytest.raises(ConfigError, match=r"astra.codebooks=null: attach \[4, 4, 64, 12\] first"):
        method.shard(model, 0, 2)
    method.attach(torch.zeros(3, 4, 64, 12))  # one layer too few
    with pytest.raises(ConfigError, match=r"astra.codebooks=\[3,4,64,12\]: attach \[4, 4, 64, 12\]"):
        method.shard(model, 0, 2)


def test_tensor_shards_share_the_models_memory() -> None:
    model = small_model("plain")
    for rank in range(2):
        shard = load_method("tensor").shard(model, rank, 2)
        for layer, block in zip(shard.layers, model.blocks, strict=True):
            for part in ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2"):
                module, name = part.split(".")
                mine = getattr(getattr(layer, module), name).weight
                whole = getattr(getattr(block, module), name).weight
                assert mine.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


@pytest.mark.parametrize("world", [2, 3, 4])
def test_tensor_formula_equals_what_a_ring_with_uneven_parts_receives(world: int) -> None:
    """The small models have even parts; the formula holds for any [S, D]."""
    shape = ModelShape(layers=1, hidden=5, heads=1, mlp_hidden=5, tokens=6, class_tokens=1, patch_values=1, classes=1)

    def rank_main(group: TcpGroup) -> int:
        for _ in range(2 * shape.layers):
            group.all_reduce(torch.zeros(shape.sequence, shape.hidden))
        return 8 * group.traffic.received_bytes

    assert tuple(run_ranks(world, rank_main)) == load_method("tensor").received_bits(shape, world)


@pytest.mark.parametrize(
    ("name", "world", "message"),
    [
        ("tensor", 5, "devices=5: tensor needs 1 to 4 devices"),
        ("pipeline", 5, "devices=5: pipeline needs 1 to 4 devices"),
        ("sequence", 23, "devices=23: sequence needs 1 to 22 devices"),
        ("ring", 23, "devices=23: ring needs 1 to 22 devices"),
        ("megatron_sp", 5, "devices=5: megatron_sp needs 1 to 4 devices"),
        ("galaxy", 5, "devices=5: galaxy needs 1 to 4 devices"),
        ("block", 49, "devices=49: block needs 1 to 48 devices"),
        ("prism", 3, "prism.segment_means=8: must be from 1 to 7: 3 devices have 22 rows"),
        ("prism", 23, "devices=23: prism needs 1 to 22 devices"),
        ("astra", 22, "devices=22: astra needs 1 to 21 devices"),
    ],
)
def test_unsuitable_numbers_of_devices_raise(name: str, world: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_method(name).check(CONFIGS["plain"].shape, world)


@pytest.mark.parametrize(
    ("name", "setting", "value", "allowed"),
    [
        ("sequence", "gather", "q", "allowed: x, kv"),
        ("sequence", "codec", "int9", "unknown; did you mean int8"),
        ("tensor", "sync", "tree", "allowed: ring, star, gather"),
        ("ring", "directions", 3, "allowed: 1, 2"),
        ("block", "sync", "tp", "allowed: ag, sp"),
    ],
)
def test_unknown_values_of_settings_raise(name: str, setting: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.{setting}={value}: {allowed}"):
        load_method(name, **{setting: value})


@pytest.mark.parametrize("sync", ["ag", "sp"])
def test_block_splits_features_equally_only(sync: str) -> None:
    with pytest.raises(ConfigError, match="partition=speed: must be equal for block"):
        load_method("block", (1.0, 0.5), blocks=2, sync=sync).check(CONFIGS["plain"].shape, 2)


def test_segments_of_a_slow_device_need_rows_too() -> None:
    with pytest.raises(ConfigError, match="prism.segment_means=8: must be from 1 to 4: 3 devices have 22 rows"):
        load_method("prism", (1.0, 1.0, 0.5)).check(CONFIGS["plain"].shape, 3)


def test_block_groups_must_divide_the_layers() -> None:
    with pytest.raises(ConfigError, match="block.blocks=3: must divide 4 layers; allowed: 1, 2, 4"):
        load_method("block", blocks=3).check(CONFIGS["plain"].shape, 2)


@pytest.mark.parametrize(("setting", "value"), [("groups", 5), ("codebook_size", 1000)])
def test_unsuitable_quantizer_settings_raise(setting: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"astra.{setting}={value}"):
        load_method("astra", **{setting: value}).check(CONFIGS["plain"].shape, 2)


def test_methods_are_found_by_name() -> None:
    assert {"single", "tensor", "sequence", "pipeline", "astra"} <= set(method_names())
    for name in method_names():
        assert load_method(name).name == name
    with pytest.raises(ConfigError, match=r"methods=sequnce: .*did you mean sequence"):
        load_method("sequnce")
    with pytest.raises(ConfigError, match=r"astra\.group=4: .*did you mean groups"):
        load_method("astra", group=4)
    with pytest.raises(ConfigError, match=r"single\.groups=4: unknown; single has no settings"):
        load_method("single", groups=4)


def test_labels_distinguish_variants() -> None:
    variants = [load_method("astra", groups=g, optimizations=s) for g in (1, 16) for s in ("paper", "lut")]
    assert len({method.label for method in variants}) == 4
    assert load_method("tensor").label == "tensor"
    assert load_method("sequence", gather="kv", codec="int8").label == "sequence kv int8"
    assert load_method("block", blocks=2, sync="sp").label == "block Nb=2 sp"
