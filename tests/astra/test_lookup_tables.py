"""Lookup tables: the keys and values of decoding and projection, and files that are checked."""

import threading
import time
import warnings

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from testbed.astra import lookup_tables as lookup_tables_module
from testbed.astra.lookup_tables import LookupTable, lookup_tables, table_bytes
from testbed.astra.quantizer import Quantizer
from testbed.errors import ConfigError
from testbed.models.decoder import DecoderBlock
from testbed.models.gpt2 import Gpt2, Gpt2Config
from testbed.models.llama import GroupedAttention, Llama, LlamaConfig, Rotary
from testbed.models.transformer import Attention, Block
from testbed.models.vit import VisionTransformer, VitConfig


def randomize(module, seed):
    """Draw every parameter, biases and norms too, so that none is 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        with torch.no_grad():
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    return module.eval().requires_grad_(False)


def llama_config(hidden, heads, shared, layers=1):
    return LlamaConfig(layers, hidden, heads, shared, 6, 16, 11, 1e-5, Rotary(6, 100.0), tied=True)


def make_block(kind, hidden, seed, bias=True):
    if kind == "layer scale":
        block = Block(hidden, 2, 8, 1e-6, layer_scale=True)
    elif kind == "llama":
        block = Llama(llama_config(hidden, 4, 2)).blocks[0]
    else:
        norm = nn.LayerNorm(hidden, bias=bias) if kind == "layer norm" else nn.RMSNorm(hidden, elementwise_affine=bias)
        attn = Attention(hidden, 2)
        if not bias:
            attn.k, attn.v = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        block = DecoderBlock(norm, attn, nn.Identity(), nn.Identity())
    return randomize(block, seed)


def random_codebooks(groups, size, width, seed, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return offset + torch.randn(1, groups, size, width, generator=generator)


def rotations(layers, hidden, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(layers, hidden, hidden, generator=generator)).Q.contiguous()


def draw_codes(tokens, groups, size, seed):
    return torch.randint(size, (tokens, groups), generator=torch.Generator().manual_seed(seed))


def decoded_keys_values(block, quantizer, codes, start=0, layer=0):
    with torch.no_grad():
        return block.attn.keys_values(block.norm1(quantizer.decode(layer, codes)[None]), start)


def rotation_error(decoded):
    """The share of a deviation that a rotation may change: its rounded matrix preserves squares to 2^-22, measured."""
    return 2**-21 * float((decoded.square().mean(-1) / decoded.var(-1, correction=0)).max())


@settings(max_examples=80)
@example("layer scale", False, 1, 64, 2, 2, 0.0, True, 1)  # two nearly equal numbers
@given(
    kind=st.sampled_from(["layer scale", "layer norm", "rms norm", "llama"]),
    bias=st.booleans(),
    groups=st.sampled_from([1, 2, 3, 8, 16]),
    size=st.sampled_from([2, 16, 64]),
    width=st.sampled_from([2, 4, 6]),
    tokens=st.integers(0, 30),
    offset=st.sampled_from([0.0, 3.0]),
    rotated=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_tables_equal_decoding_and_projection(kind, bias, groups, size, width, tokens, offset, rotated, seed):
    block = make_block(kind, groups * width, seed, bias)
    rotation_LDD = rotations(1, groups * width, seed) if rotated else None
    quantizer = Quantizer(random_codebooks(groups, size, width, seed, offset), rotation_LDD=rotation_LDD)
    codes = draw_codes(tokens, groups, size, seed)
    rotation_DD = None if rotation_LDD is None else rotation_LDD[0]
    found = LookupTable(block, quantizer.codebooks_LIKd[0], rotation_DD).keys_values(codes, 5)
    lost = rotation_error(quantizer.decode(0, codes)) if rotated and tokens and kind.startswith("layer") else 0.0
    for x, expected in zip(found, decoded_keys_values(block, quantizer, codes, 5), strict=True):
        by_rotation = lost * float(expected.abs().max()) if lost else 0.0
        # an offset that the norm subtracts costs digits with and without a table
        torch.testing.assert_close(x, expected, atol=3e-5 + by_rotation, rtol=1e-5)


def test_a_token_of_equal_numbers_has_only_eps_as_its_deviation():
    block = make_block("layer norm", 8, 0)
    quantizer = Quantizer(torch.full((1, 2, 2, 4), 0.5))
    codes = draw_codes(3, 2, 2, 0)
    found = LookupTable(block, quantizer.codebooks_LIKd[0]).keys_values(codes)
    for x, expected in zip(found, decoded_keys_values(block, quantizer, codes), strict=True):
        torch.testing.assert_close(x, expected, atol=1e-4, rtol=0)


def test_keys_are_rotated_to_the_position_of_each_token():
    block = make_block("llama", 12, 1)
    assert isinstance(block.attn, GroupedAttention)
    quantizer = Quantizer(random_codebooks(3, 8, 4, 2))
    codes = draw_codes(5, 3, 8, 3)
    positions = torch.tensor([0, 1, 7, 8, 30])
    table = LookupTable(block, quantizer.codebooks_LIKd[0])
    keys, values = table.keys_values(codes, positions)
    for row, position in enumerate(positions.tolist()):
        k, v = decoded_keys_values(block, quantizer, codes[row : row + 1], position)
        torch.testing.assert_close(keys[:, :, row : row + 1], k, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(values[:, :, row : row + 1], v, atol=1e-5, rtol=1e-5)
    assert torch.equal(table.keys_values(codes, 4)[0], table.keys_values(codes, torch.arange(4, 9))[0])


@pytest.mark.parametrize(
    "model",
    [
        VisionTransformer(VitConfig(layers=2, hidden=24, heads=3, patch=2, tokens=16, classes=4)),
        Gpt2(Gpt2Config(layers=2, hidden=24, heads=2, mlp_hidden=8, vocabulary=5, positions=9)),
        Llama(llama_config(24, 4, 1, layers=2)),
    ],
    ids=["vit", "gpt2", "llama"],
)
def test_every_layer_of_a_model_has_its_table(model):
    randomize(model, 1)
    quantizer = Quantizer(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)))
    codes = draw_codes(7, 3, 8, 3)
    for layer, table in enumerate(lookup_tables(model, quantizer)):
        expected = decoded_keys_values(model.blocks[layer], quantizer, codes, layer=layer)
        for x, y in zip(table.keys_values(codes), expected, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_the_size_is_that_of_rows_and_moments():
    table = LookupTable(make_block("llama", 12, 1), random_codebooks(3, 8, 4, 2)[0])
    size = table.rows_NW.nbytes + table.moments_N2.nbytes
    assert size == table_bytes(3 * 8, 2 * 2 * 6)
    assert size == 3 * 8 * (2 * 2 * 6 * 4 + 2 * 8)  # two key/value heads of 6, keys and values, 4 bytes


def test_a_second_start_loads_the_file_of_the_first(tmp_path):
    block, codebooks = make_block("layer norm", 12, 1), random_codebooks(3, 8, 4, 2)[0]
    codes = draw_codes(9, 3, 8, 3)
    made = LookupTable(block, codebooks, cache_dir=tmp_path)
    (path,) = tmp_path.glob("lut-*")
    written = path.stat().st_mtime_ns
    loaded = LookupTable(block, codebooks, cache_dir=tmp_path)
    assert path.stat().st_mtime_ns == written
    assert torch.equal(made.keys_values(codes)[0], loaded.keys_values(codes)[0])
    assert torch.equal(made.keys_values(codes)[1], LookupTable(block, codebooks).keys_values(codes)[1])


def test_of_two_runs_that_need_a_table_one_makes_it(tmp_path, monkeypatch):
    block, codebooks = make_block("layer norm", 12, 1), random_codebooks(3, 8, 4, 2)[0]
    made, make = [], lookup_tables_module._make

    def slowly(projection, codebooks_GKd):
        if codebooks_GKd.shape == codebooks.shape:  # of the whole table, and not of the rows that a check compares
            made.append(threading.get_ident())
            time.sleep(0.3)
        return make(projection, codebooks_GKd)

    monkeypatch.setattr(lookup_tables_module, "_make", slowly)
    runs = [threading.Thread(target=LookupTable, args=(block, codebooks, None, tmp_path)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(made) == 1 and len(list(tmp_path.glob("lut-*"))) == 1


def test_other_weights_or_codebooks_have_files_of_their_own(tmp_path):
    block, codebooks = make_block("layer norm", 12, 1), random_codebooks(3, 8, 4, 2)[0]

    def files(of=codebooks):
        LookupTable(block, of, cache_dir=tmp_path)
        return len(list(tmp_path.glob("lut-*")))

    assert files() == 1
    assert files(codebooks + 1e-3) == 2
    for count, parameter in enumerate([block.norm1.weight, block.attn.k.weight, block.attn.v.weight]):
        parameter.flatten()[-1] += 1e-3
        assert files() == 3 + count
    # the bias is added after the lookup, so it is not in the file
    block.attn.k.bias += 1.0
    assert files() == 5
    codes, quantizer = draw_codes(4, 3, 8, 3), Quantizer(codebooks[None])
    keys, _ = LookupTable(block, codebooks, cache_dir=tmp_path).keys_values(codes)
    torch.testing.assert_close(keys, decoded_keys_values(block, quantizer, codes)[0], atol=1e-5, rtol=1e-5)


def test_a_file_that_another_number_of_threads_made_is_used(tmp_path, recwarn):
    """At the paper's width, where sums of 768 products in another order differ in their last digits."""
    block, codebooks = make_block("layer norm", 768, 1), random_codebooks(1, 1024, 768, 2, 30.0)[0]
    threads = torch.get_num_threads()
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            LookupTable(block, codebooks, cache_dir=tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert not recwarn.list


def cut(content):
    return content[: len(content) // 2]


def lost_page(content):
    return content[:-300] + bytes(300)


@pytest.mark.parametrize("damage", [cut, lost_page, lambda content: b"", lambda content: b"something else"])
def test_a_damaged_file_is_replaced_with_a_warning(tmp_path, damage):
    block, codebooks = make_block("layer norm", 12, 1), random_codebooks(3, 8, 4, 2)[0]
    LookupTable(block, codebooks, cache_dir=tmp_path)
    (path,) = tmp_path.glob("lut-*")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match=path.name):
        LookupTable(block, codebooks, cache_dir=tmp_path)
    assert path.read_bytes() == whole and len(list(tmp_path.glob("lut-*"))) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LookupTable(block, codebooks, cache_dir=tmp_path)


def test_what_does_not_fit_is_named():
    block, codebooks = make_block("layer norm", 12, 1), random_codebooks(3, 8, 4, 2)[0]
    table = LookupTable(block, codebooks)
    with pytest.raises(ValueError, match=r"\[4, 2\]; expected \[tokens, 3\]"):
        table.keys_values(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="width 8; expected 12"):
        LookupTable(block, random_codebooks(2, 8, 4, 2)[0])
    with pytest.raises(ConfigError):
        LookupTable(block, codebooks[:, :7])
    with pytest.raises(ValueError, match="num_quantizers is 3; lookup tables allow 1"):
        lookup_tables(Llama(llama_config(12, 4, 1)), Quantizer(random_codebooks(3, 8, 12, 2), num_quantizers=3))
    with pytest.raises(ValueError, match="has 1 layers; expected the model's 2"):
        lookup_tables(Llama(llama_config(12, 4, 1, layers=2)), Quantizer(codebooks[None]))
    block.norm1 = nn.Identity()
    with pytest.raises(ValueError, match="Identity"):
        LookupTable(block, codebooks)
