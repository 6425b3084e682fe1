import warnings

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from testbed.astra.lookup_tables import CodewordTables, table_bytes, tables_for
from testbed.astra.quantizer import Quantizer
from testbed.errors import ConfigError
from testbed.models.decoder import DecoderBlock
from testbed.models.gpt2 import Gpt2, Gpt2Config
from testbed.models.llama import GroupedAttention, Llama, LlamaConfig, Rotary
from testbed.models.transformer import Attention, Block
from testbed.models.vit import VisionTransformer, VitConfig


def randomize(module, seed):
    """Every parameter away from 0 and 1, biases and norms too."""
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


def books(groups, size, width, seed, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return offset + torch.randn(1, groups, size, width, generator=generator)


def turns(layers, hidden, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(layers, hidden, hidden, generator=generator)).Q.contiguous()


def draw_codes(tokens, groups, size, seed):
    return torch.randint(size, (tokens, groups), generator=torch.Generator().manual_seed(seed))


def decoded_keys_values(block, quantizer, codes, start=0, layer=0):
    with torch.no_grad():
        return block.attn.keys_values(block.norm1(quantizer.decode(layer, codes)[None]), start)


def relative_error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def lost_by_turn(decoded):
    """The share of a deviation that a turn may change: its matrix is rounded and keeps squares to 2^-22, measured."""
    return 2**-21 * float((decoded.square().mean(-1) / decoded.var(-1, correction=0)).max())


@settings(max_examples=80)
@example("layer scale", False, 1, 64, 2, 2, 0.0, True, 1)  # two numbers that are nearly equal
@given(
    kind=st.sampled_from(["layer scale", "layer norm", "rms norm", "llama"]),
    bias=st.booleans(),
    groups=st.sampled_from([1, 2, 3, 8, 16]),
    size=st.sampled_from([2, 16, 64]),
    width=st.sampled_from([2, 4, 6]),
    tokens=st.integers(0, 30),
    offset=st.sampled_from([0.0, 3.0]),
    turned=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_tables_give_what_decoding_and_projecting_gives(kind, bias, groups, size, width, tokens, offset, turned, seed):
    block = make_block(kind, groups * width, seed, bias)
    turn = turns(1, groups * width, seed) if turned else None
    quantizer = Quantizer(books(groups, size, width, seed, offset), rotation_LDD=turn)
    codes = draw_codes(tokens, groups, size, seed)
    pre_rotation = None if turn is None else turn[0]
    found = CodewordTables(block, quantizer.codebooks_LIKd[0], rotation_DD=pre_rotation).keys_values(codes, 5)
    lost = lost_by_turn(quantizer.decode(0, codes)) if turned and tokens and kind.startswith("layer") else 0.0
    for x, expected in zip(found, decoded_keys_values(block, quantizer, codes, 5), strict=True):
        by_turn = lost * float(expected.abs().max()) if lost else 0.0
        # an offset that the norm takes away costs digits on either way
        torch.testing.assert_close(x, expected, atol=3e-5 + by_turn, rtol=1e-5)


def test_a_token_of_equal_numbers_has_no_deviation_but_eps():
    block = make_block("layer norm", 8, 0)
    quantizer = Quantizer(torch.full((1, 2, 2, 4), 0.5))
    codes = draw_codes(3, 2, 2, 0)
    found = CodewordTables(block, quantizer.codebooks_LIKd[0]).keys_values(codes)
    for x, expected in zip(found, decoded_keys_values(block, quantizer, codes), strict=True):
        torch.testing.assert_close(x, expected, atol=1e-4, rtol=0)


# float32 sums of rounded numbers, rounded once more: relative errors of about 2^-9 and 2^-12; measured 0.0020, 0.00026
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 3e-3), (torch.float16, 4e-4)])
@pytest.mark.parametrize("groups", [1, 8, 32])
def test_half_the_bytes_cost_an_error_within_its_bound(dtype, bound, groups):
    block = make_block("layer norm", 192, 3)
    quantizer = Quantizer(books(groups, 64, 192 // groups, 4))
    codes = draw_codes(100, groups, 64, 5)
    full, half = (CodewordTables(block, quantizer.codebooks_LIKd[0], d) for d in (torch.float32, dtype))
    assert half.rows_NW.nbytes * 2 == full.rows_NW.nbytes
    for x, expected in zip(half.keys_values(codes), decoded_keys_values(block, quantizer, codes), strict=True):
        assert x.dtype == torch.float32
        assert bound / 10 < relative_error(x, expected) < bound


def test_keys_are_turned_to_the_position_of_each_row():
    block = make_block("llama", 12, 1)
    assert isinstance(block.attn, GroupedAttention)
    quantizer = Quantizer(books(3, 8, 4, 2))
    codes = draw_codes(5, 3, 8, 3)
    positions = torch.tensor([0, 1, 7, 8, 30])
    tables = CodewordTables(block, quantizer.codebooks_LIKd[0])
    keys, values = tables.keys_values(codes, positions)
    for row, position in enumerate(positions.tolist()):
        k, v = decoded_keys_values(block, quantizer, codes[row : row + 1], position)
        torch.testing.assert_close(keys[:, :, row : row + 1], k, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(values[:, :, row : row + 1], v, atol=1e-5, rtol=1e-5)
    assert torch.equal(tables.keys_values(codes, 4)[0], tables.keys_values(codes, torch.arange(4, 9))[0])


@pytest.mark.parametrize(
    "model",
    [
        VisionTransformer(VitConfig(layers=2, hidden=24, heads=3, patch=2, tokens=16, classes=4)),
        Gpt2(Gpt2Config(layers=2, hidden=24, heads=2, mlp_hidden=8, vocabulary=5, positions=9)),
        Llama(llama_config(24, 4, 1, layers=2)),
    ],
    ids=["vit", "gpt2", "llama"],
)
def test_every_layer_of_a_model_has_its_tables(model):
    randomize(model, 1)
    quantizer = Quantizer(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2)))
    codes = draw_codes(7, 3, 8, 3)
    for layer, tables in enumerate(tables_for(model, quantizer)):
        expected = decoded_keys_values(model.blocks[layer], quantizer, codes, layer=layer)
        for x, y in zip(tables.keys_values(codes), expected, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


def test_their_size_is_that_of_rows_and_sums():
    block, codebooks = make_block("llama", 12, 1), books(3, 8, 4, 2)[0]
    tables = CodewordTables(block, codebooks, torch.bfloat16)
    assert tables.bytes == table_bytes(block, codebooks, torch.bfloat16)
    assert tables.bytes == 3 * 8 * (2 * 2 * 6 * 2 + 2 * 8)  # two key/value heads of 6, keys and values, 2 bytes
    assert tables.additions(5) == 5 * 3 * 24 and tables.made_s > 0


def test_a_second_start_loads_what_the_first_made(tmp_path):
    block, codebooks = make_block("layer norm", 12, 1), books(3, 8, 4, 2)[0]
    codes = draw_codes(9, 3, 8, 3)
    made = CodewordTables(block, codebooks, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    loaded = CodewordTables(block, codebooks, cache_dir=tmp_path)
    assert path.stat().st_mtime_ns == written
    assert torch.equal(made.keys_values(codes)[0], loaded.keys_values(codes)[0])
    assert torch.equal(made.keys_values(codes)[1], CodewordTables(block, codebooks).keys_values(codes)[1])


def test_other_weights_codebooks_or_dtypes_have_files_of_their_own(tmp_path):
    block, codebooks = make_block("layer norm", 12, 1), books(3, 8, 4, 2)[0]

    def files(tables_of=block, of=codebooks, dtype=torch.float32):
        CodewordTables(tables_of, of, dtype, tmp_path)
        return len(list(tmp_path.iterdir()))

    assert files() == 1
    assert files(dtype=torch.bfloat16) == 2
    assert files(of=codebooks + 1e-3) == 3
    for count, parameter in enumerate([block.norm1.weight, block.attn.k.weight, block.attn.v.weight]):
        parameter.flatten()[-1] += 1e-3
        assert files() == 4 + count
    # what is added afterwards is no part of the table, and is not taken from the file
    block.attn.k.bias += 1.0
    assert files() == 6
    codes, quantizer = draw_codes(4, 3, 8, 3), Quantizer(codebooks[None])
    keys, _ = CodewordTables(block, codebooks, cache_dir=tmp_path).keys_values(codes)
    torch.testing.assert_close(keys, decoded_keys_values(block, quantizer, codes)[0], atol=1e-5, rtol=1e-5)


def test_a_file_that_another_number_of_threads_made_is_used(tmp_path, recwarn):
    """At the paper's width: sums of 768 products in another order differ in their last digits."""
    block, codebooks = make_block("layer norm", 768, 1), books(1, 1024, 768, 2, 30.0)[0]
    threads = torch.get_num_threads()
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            CodewordTables(block, codebooks, cache_dir=tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert not recwarn.list


def cut(content):
    return content[: len(content) // 2]


def lost_page(content):
    return content[:-300] + bytes(300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("damage", [cut, lost_page, lambda content: b"", lambda content: b"something else"])
def test_a_damaged_file_is_replaced_with_a_warning(tmp_path, damage, dtype):
    block, codebooks = make_block("layer norm", 12, 1), books(3, 8, 4, 2)[0]
    CodewordTables(block, codebooks, dtype, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match=path.name):
        CodewordTables(block, codebooks, dtype, tmp_path)
    assert path.read_bytes() == whole and len(list(tmp_path.iterdir())) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CodewordTables(block, codebooks, dtype, tmp_path)


def test_what_cannot_be_is_refused():
    block, codebooks = make_block("layer norm", 12, 1), books(3, 8, 4, 2)[0]
    tables = CodewordTables(block, codebooks)
    with pytest.raises(ValueError, match=r"\[4, 2\]; expected \[tokens, 3\]"):
        tables.keys_values(torch.zeros(4, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="width 8; expected 12"):
        CodewordTables(block, books(2, 8, 4, 2)[0])
    with pytest.raises(ValueError, match="float64; allowed"):
        CodewordTables(block, codebooks, torch.float64)
    with pytest.raises(ValueError, match="65504"):
        CodewordTables(block, codebooks * 1e5, torch.float16)
    with pytest.raises(ConfigError):
        CodewordTables(block, codebooks[:, :7])
    with pytest.raises(ValueError, match="have 3 num_quantizers; tables allow 1"):
        tables_for(Llama(llama_config(12, 4, 1)), Quantizer(books(3, 8, 12, 2), num_quantizers=3))
    with pytest.raises(ValueError, match="has 1 layers; expected the model's 2"):
        tables_for(Llama(llama_config(12, 4, 1, layers=2)), Quantizer(codebooks[None]))
    block.norm1 = nn.Identity()
    with pytest.raises(ValueError, match="Identity"):
        CodewordTables(block, codebooks)
