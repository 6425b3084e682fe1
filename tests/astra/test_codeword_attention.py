"""Per-codeword attention: equal to attention over all received tokens, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.astra.codeword_attention import CodewordAttention
from testbed.astra.quantizer import Quantizer
from testbed.models.decoder import causal_mask
from testbed.models.gpt2 import Gpt2, Gpt2Config
from testbed.models.llama import Llama, LlamaConfig, Rotary
from testbed.models.partial_attention import attend_part, merge
from testbed.models.transformer import Block


def randomize(module, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = 2 * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
        with torch.no_grad():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module.eval().requires_grad_(False)


def per_token(block, x_BSD, decoded_RD, visible=None):
    """Attention over all tokens in one softmax, own rows last."""
    h = block.norm1(x_BSD)
    own_k, own_v = block.attn.keys_values(h)
    k, v = block.attn.keys_values(block.norm1(decoded_RD[None]))
    k, v = torch.cat([k, own_k], 2), torch.cat([v, own_v], 2)
    return block.attn.mix(block.attn.query(h), k, v, visible)


def per_codeword(block, codebook, x_BSD, codes, visible=None):
    h = block.norm1(x_BSD)
    attention = CodewordAttention(block, codebook)
    q = block.attn.query(h)
    own = attend_part(q, *block.attn.keys_values(h), visible)
    return merge([own, attend_part(q, *attention.occurring(codes))]).mixed()


@settings(max_examples=50)
@given(
    size=st.sampled_from([2, 8, 64]),
    remote=st.integers(0, 200),
    own=st.integers(1, 12),
    heads=st.sampled_from([1, 2, 4]),
    layer_scale=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_attending_to_codewords_is_attending_to_all_tokens(size, remote, own, heads, layer_scale, seed):
    generator = torch.Generator().manual_seed(seed)
    block = randomize(Block(12, heads, 8, 1e-6, layer_scale), seed)
    quantizer = Quantizer(torch.randn(1, 1, size, 12, generator=generator))
    codes = torch.randint(size, (remote, 1), generator=generator)
    x = torch.randn(1, own, 12, generator=generator)
    found = per_codeword(block, quantizer.codebooks_LIKd[0], x, codes)
    torch.testing.assert_close(found, per_token(block, x, quantizer.decode(0, codes)), atol=1e-5, rtol=1e-5)


def test_a_codeword_of_many_tokens_weighs_as_many():
    block = randomize(Block(12, 2, 8, 1e-6, False), 0)
    quantizer = Quantizer(torch.randn(1, 1, 4, 12, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(2))
    codes = torch.tensor([[2]] * 500 + [[0]])
    found = per_codeword(block, quantizer.codebooks_LIKd[0], x, codes)
    torch.testing.assert_close(found, per_token(block, x, quantizer.decode(0, codes)), atol=1e-5, rtol=1e-5)
    once = per_codeword(block, quantizer.codebooks_LIKd[0], x, torch.tensor([[2], [0]]))
    assert (found - once).abs().max() > 0.1


@pytest.mark.parametrize("shares", [[4, 3, 5], [1, 1, 1, 9]])
def test_causal_devices_count_the_tokens_of_devices_before_them(shares):
    model = Gpt2(Gpt2Config(layers=1, hidden=12, heads=2, mlp_hidden=8, vocabulary=5, positions=12))
    block = randomize(model, 0).blocks[0]
    generator = torch.Generator().manual_seed(1)
    quantizer = Quantizer(torch.randn(1, 1, 4, 12, generator=generator))
    x, codes = torch.randn(1, sum(shares), 12, generator=generator), torch.randint(4, (12, 1), generator=generator)
    for device, share in enumerate(shares):
        start = sum(shares[:device])
        own, before = x[:, start : start + share], codes[:start]
        found = per_codeword(block, quantizer.codebooks_LIKd[0], own, before, causal_mask(share, share))
        expected = per_token(block, own, quantizer.decode(0, before), causal_mask(share, start + share))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_more_groups_and_rotated_keys_are_refused():
    block = randomize(Block(12, 2, 8, 1e-6, False), 0)
    with pytest.raises(ValueError, match="2 groups; per-codeword attention allows 1"):
        CodewordAttention(block, torch.randn(2, 4, 6))
    with pytest.raises(ValueError, match=r"\[5\]; expected \[tokens, 1\]"):
        attention = CodewordAttention(block, torch.randn(1, 4, 12))
        attention.occurring(torch.zeros(5, dtype=torch.int64))
    llama = Llama(LlamaConfig(1, 12, 2, 1, 6, 16, 11, 1e-5, Rotary(6, 100.0), tied=True))
    with pytest.raises(ValueError, match="rotary"):
        CodewordAttention(llama.blocks[0], torch.randn(1, 4, 12))
