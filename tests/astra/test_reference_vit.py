"""The simulation in one process: equal to the plain model without loss, and to a loop over queries with loss."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch

from testbed.astra.quantizer import Quantizer
from testbed.astra.reference_vit import block_masks, mixed_attention, simulate
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer
from tests.methods.small import layer_inputs, pixels, random_codebooks, small_model


def perfect_codebooks(model: VisionTransformer, inputs: torch.Tensor) -> torch.Tensor:
    """Codebooks [L, 1, K, D] that have every content token's layer input as a codeword."""
    tokens = model.shape.tokens
    size = 1 << (tokens - 1).bit_length()
    codebooks = torch.full((model.shape.layers, 1, size, model.shape.hidden), 100.0)
    for layer, x_SD in enumerate(layer_inputs(model, inputs)[:-1]):
        codebooks[layer, 0, :tokens] = x_SD[1:]
    return codebooks


@pytest.mark.parametrize("size", ["plain", "layer_scale"])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_without_quantization_error_it_is_the_plain_model(size: str, world: int) -> None:
    model = small_model(size)
    inputs, tokens = pixels(model), model.shape.tokens
    shares = [tokens - 2 * (world - 1), *[2] * (world - 1)]
    quantizer = Quantizer(perfect_codebooks(model, inputs)) if world > 1 else None
    simulated = simulate(model, quantizer, inputs, shares)
    torch.testing.assert_close(simulated.hidden, layer_inputs(model, inputs)[-1][1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(simulated.logits, model(inputs)[0].detach(), atol=1e-4, rtol=0)
    assert simulated.ties == 0


def test_masks_of_two_devices() -> None:
    masks = block_masks([2, 1])  # rows: class copy 0, class copy 1, tokens 0 and 1 of device 0, token 2 of device 1
    assert masks.exact.int().tolist() == [
        [1, 0, 1, 1, 0],
        [0, 1, 0, 0, 1],
        [1, 0, 1, 1, 0],
        [1, 0, 1, 1, 0],
        [0, 1, 0, 0, 1],
    ]
    assert masks.visible.int().tolist() == [
        [1, 0, 1, 1, 1],
        [0, 1, 1, 1, 1],
        [1, 0, 1, 1, 1],
        [1, 0, 1, 1, 1],
        [0, 1, 1, 1, 1],
    ]


@torch.no_grad()
def test_mixed_attention_query_by_query() -> None:
    block = cast(Block, small_model("plain").blocks[0])
    shares, hidden, heads = [3, 2, 2], 48, 4
    torch.manual_seed(4)
    x_BSD, quantized_BSD = torch.randn(1, 10, hidden), torch.randn(1, 10, hidden)
    mixed_SD = mixed_attention(block, x_BSD, quantized_BSD, block_masks(shares))[0]
    owners = [0, 1, 2, 0, 0, 0, 1, 1, 2, 2]
    for row, owner in enumerate(owners):
        seen = []
        for key, key_owner in enumerate(owners):
            if key_owner == owner:
                seen.append(x_BSD[0, key])
            elif key >= len(shares):
                seen.append(quantized_BSD[0, key])
        normed_BSD = block.norm1(torch.stack(seen))
        q_D, k_SD, v_SD = block.attn.q(block.norm1(x_BSD[0, row])), block.attn.k(normed_BSD), block.attn.v(normed_BSD)
        for q, k, v, found in zip(
            q_D.chunk(heads), k_SD.chunk(heads, 1), v_SD.chunk(heads, 1), mixed_SD[row].chunk(heads), strict=True
        ):
            expected = (k @ q / math.sqrt(hidden // heads)).softmax(0) @ v
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_mixed_attention_passes_gradients_to_both_inputs() -> None:
    block = cast(Block, small_model("plain").blocks[0])
    x, quantized = torch.randn(2, 7, 48, requires_grad=True), torch.randn(2, 7, 48, requires_grad=True)
    mixed_attention(block, x, quantized, block_masks([3, 2])).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert quantized.grad is not None and quantized.grad[:, 2:].abs().min() > 0
    assert not quantized.grad[:, :2].any(), "nobody sees a quantized class copy"


def own_codes(
    model: VisionTransformer, codebooks: torch.Tensor, inputs: torch.Tensor, shares: list[int]
) -> torch.Tensor:
    """Codes [L, T, G] that the simulation chooses, found layer by layer from those before."""
    quantizer = Quantizer(codebooks)
    chosen: list[torch.Tensor] = []
    encode = quantizer.encode

    def record(layer: int, x_PD: torch.Tensor) -> torch.Tensor:
        chosen.append(encode(layer, x_PD))
        return chosen[-1]

    quantizer.encode = record
    simulate(model, quantizer, inputs, shares)
    return torch.stack(chosen)


def test_given_codes_are_used_where_they_tie_and_refused_where_they_do_not() -> None:
    model, shares = small_model("plain"), [11, 10]
    inputs = pixels(model)
    half = random_codebooks(model, groups=4, codebook_size=16)
    codebooks = torch.cat([half, half], dim=2)  # codeword j + 16 equals codeword j: every choice is a tie
    quantizer = Quantizer(codebooks)
    codes = own_codes(model, codebooks, inputs, shares) % 16
    plain = simulate(model, quantizer, inputs, shares, codes)
    other = codes.clone()
    other[1, 5:8, 2] += 16
    tied = simulate(model, quantizer, inputs, shares, other)
    assert (plain.ties, tied.ties) == (0, 3)
    assert torch.equal(plain.hidden, tied.hidden)
    other[2, 9, 1] = (other[2, 9, 1] + 1) % 16
    with pytest.raises(ValueError, match=r"layer 2, token 9, group 1: codeword \d+ was sent, \d+ is nearest"):
        simulate(model, quantizer, inputs, shares, other)


@pytest.mark.parametrize("shares", [[11, 11], [21, 0], [20]])
def test_shares_must_cover_all_tokens(shares: list[int]) -> None:
    model = small_model("plain")
    with pytest.raises(ValueError, match="expected positive numbers of sum 21"):
        simulate(model, None, pixels(model), shares)


def test_several_devices_need_a_quantizer() -> None:
    model = small_model("plain")
    with pytest.raises(ValueError, match="2 devices need a quantizer"):
        simulate(model, None, pixels(model), [11, 10])
