"""ASTRA's causal decoder against the plain model and against devices that are written out one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.quantized import Quantized, join_keys_values, quantized_width, split_keys_values
from testbed.astra.training.checkpoints import open_decoder, save_result
from testbed.astra.training.decoder import AstraDecoder
from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings
from testbed.astra.training.settings import TrainingSettings
from testbed.astra.training.train import RESULT, train
from testbed.astra.training.vit import random_shares
from testbed.datasets.perplexity import perplexity, window_nll
from testbed.datasets.token_windows import NextTokens
from testbed.errors import ConfigError, EnvironmentFault
from testbed.models.gpt2 import Gpt2, Gpt2Config
from testbed.models.llama import Llama, LlamaConfig, Rotary, RotaryScaling

TOKENS, VOCABULARY = 12, 30
GROUPED = LlamaConfig(2, 24, 4, 2, 8, 40, VOCABULARY, 1e-5, Rotary(8, 1000.0), tied=False)
CONFIGS: dict[str, LlamaConfig | Gpt2Config] = {
    "grouped": GROUPED,
    "one key head, scaled": replace(GROUPED, key_value_heads=1, rotary=Rotary(8, 1000.0, RotaryScaling(8, 1, 4, 64))),
    "all heads, tied": replace(GROUPED, key_value_heads=4, tied=True),
    "gpt2": Gpt2Config(2, 24, 4, 96, VOCABULARY, 20),
}


def build(config: LlamaConfig | Gpt2Config) -> Llama | Gpt2:
    torch.manual_seed(0)
    model = Llama(config) if isinstance(config, LlamaConfig) else Gpt2(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.3, 0.3)
    return model.eval()


MODELS = {name: build(config) for name, config in CONFIGS.items()}
IDS = torch.randint(0, VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(0))
KINDS = get_args(Quantized)


def random_codebooks(model: Llama | Gpt2, quantized: Quantized, groups: int, size: int = 16) -> Tensor:
    shape = model.config.shape(TOKENS)
    each = quantized_width(shape, quantized) // groups
    return 0.5 * torch.randn(shape.layers, groups, size, each, generator=torch.Generator().manual_seed(3))


class Lossless(VectorQuantizer):
    """A quantizer without loss."""

    def forward(self, layer: int, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return x_BTD.clone(), x_BTD.new_zeros(())


def device_by_device(student: AstraDecoder, ids_S: Tensor, shares: list[int]) -> Tensor:
    """Logits [S, V]: every device computes its own rows, and the rows that each query sees are gathered for it alone.

    Rows of other devices go through their codes; anchor tokens stay exact.
    """
    model, quantizer, quantized = student.model, student.quantizer, student.quantized
    assert quantizer is not None
    owner = [device for device, share in enumerate(shares) for _ in range(share)]
    x = list(model.embed(ids_S[None])[0])
    for layer, block in enumerate(model.blocks):
        attn = block.attn
        heads = attn.keys_values(torch.zeros(1, 1, model.config.hidden))[0].shape[1]

        def exact(at: int, rows=x, block=block) -> tuple[Tensor, Tensor]:
            return block.attn.keys_values(block.norm1(rows[at][None, None]), at)

        def received(at: int, rows=x, block=block, heads=heads, layer=layer) -> tuple[Tensor, Tensor]:
            def through_codes(row: Tensor) -> Tensor:
                width = row.shape[-1] // quantizer.groups
                parts = []
                for group in range(quantizer.groups):
                    codebook = quantizer.codebooks_LIKd[layer, group]
                    part = row[group * width : (group + 1) * width]
                    parts.append(codebook[(codebook - part).square().sum(-1).argmin()])
                return torch.cat(parts)

            row = rows[at]
            if quantized == "residual":
                return block.attn.keys_values(block.norm1(through_codes(row)[None, None]), at)
            if quantized == "normalized":
                return block.attn.keys_values(through_codes(block.norm1(row))[None, None], at)
            attn, h = block.attn, block.norm1(row)
            kv = through_codes(torch.cat([attn.k(h), attn.v(h)]))
            k, v = (half.view(1, heads, 1, -1) for half in kv.chunk(2))
            return (attn.rotary.apply(k, at) if isinstance(model, Llama) else k), v

        new = []
        for at in range(len(x)):
            seen = [
                exact(other) if owner[other] == owner[at] or other < student.anchor_tokens else received(other)
                for other in range(at + 1)
            ]
            k, v = (torch.cat(pair, dim=2)[0] for pair in zip(*seen, strict=True))
            q = attn.query(block.norm1(x[at][None, None]), at)[0]
            of = torch.arange(len(q)) // (len(q) // heads)  # the key head of each query head
            weights = ((q * k[of]).sum(-1) / math.sqrt(q.shape[-1])).softmax(-1)
            mixed = (weights[..., None] * v[of]).sum(1).flatten()
            new.append(block.finish(x[at], mixed))
        x = new
    return model.logits(model.norm(torch.stack(x)))


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25)
@given(data=st.data())
@torch.no_grad()
def test_it_equals_devices_one_by_one(name: str, data: st.DataObject) -> None:
    model, quantized = MODELS[name], data.draw(st.sampled_from(KINDS))
    shares = random_shares(
        TOKENS, data.draw(st.integers(2, TOKENS)), torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    )
    quantizer = VectorQuantizer(random_codebooks(model, quantized, data.draw(st.sampled_from([1, 2, 4, 8]))))
    student = AstraDecoder(model, TOKENS, quantizer, quantized, data.draw(st.integers(0, TOKENS + 1))).eval()
    found = student(IDS, shares).logits
    for index in range(2):
        expected = device_by_device(student, IDS[index], shares)
        torch.testing.assert_close(found[index], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=25)
@given(
    quantized=st.sampled_from(KINDS),
    devices=st.integers(1, TOKENS),
    anchor_tokens=st.integers(0, TOKENS),
    groups=st.sampled_from([1, 2, 8]),
    seed=st.integers(0, 999),
)
@torch.no_grad()
def test_without_loss_it_is_the_plain_model(
    name: str, quantized: Quantized, devices: int, anchor_tokens: int, groups: int, seed: int
) -> None:
    model, expected = MODELS[name], MODELS[name](IDS)
    shares = random_shares(TOKENS, devices, torch.Generator().manual_seed(seed))
    codebooks = random_codebooks(model, quantized, groups)
    lossless = AstraDecoder(model, TOKENS, Lossless(codebooks), quantized, anchor_tokens)
    torch.testing.assert_close(lossless(IDS, shares).logits, expected, atol=1e-5, rtol=1e-5)
    lossy = AstraDecoder(model, TOKENS, VectorQuantizer(codebooks), quantized, anchor_tokens).eval()
    alone = lossy(IDS, [TOKENS], keep_states=True)
    torch.testing.assert_close(alone.logits, expected, atol=1e-5, rtol=1e-5)
    assert alone.commitment == 0 and len(alone.states) == 2
    all_anchors = AstraDecoder(model, TOKENS, lossy.quantizer, quantized, TOKENS).eval()
    torch.testing.assert_close(all_anchors(IDS, shares).logits, expected, atol=1e-5, rtol=1e-5)
    own = shares[0]
    torch.testing.assert_close(lossy(IDS, shares).logits[:, :own], expected[:, :own], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("quantized", KINDS)
def test_codes_change_the_logits_and_gradients_reach_every_parameter(quantized: Quantized) -> None:
    for model in MODELS.values():
        student = AstraDecoder(
            model, TOKENS, VectorQuantizer(random_codebooks(model, quantized, 2), VqSettings(noise=0.3)), quantized, 1
        )
        found = student(IDS, [5, 4, 3])
        assert (found.logits[:, 5:] - model(IDS)[:, 5:]).abs().amax(-1).min() > 1e-3
        assert found.commitment > 0
        model.zero_grad()
        (found.logits.square().mean() + 1e-3 * found.commitment).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            # softmax ignores a constant that is added to all keys, but keys from codes may have no bias
            assert parameter.grad.abs().max() > 1e-7 or name.endswith("attn.k.bias"), name


def test_codebooks_follow_only_what_is_sent() -> None:
    model = MODELS["grouped"]
    student = AstraDecoder(model, TOKENS, VectorQuantizer(random_codebooks(model, "keys_values", 2)), "keys_values", 2)
    assert student.quantizer is not None
    student(IDS, [5, 4, 3])
    assert student.quantizer.used_LIK.sum(-1).unique().tolist() == [2 * (TOKENS - 2 - 3)]
    student.quantizer.reset_usage()
    student.eval()(IDS, [5, 4, 3])
    assert student.quantizer.used_LIK.sum() == 0


def test_keys_come_before_values() -> None:
    k, v = torch.randn(2, 1, 3, 5, 4)
    rows = join_keys_values(k, v)
    assert rows.shape == (1, 5, 24)
    assert torch.equal(rows[0, 1, 4:8], k[0, 1, 1]) and torch.equal(rows[0, 4, 12:16], v[0, 0, 4])
    assert all(torch.equal(a, b) for a, b in zip(split_keys_values(rows, 3), (k, v), strict=True))


def test_a_student_knows_the_spec_of_its_codebooks() -> None:
    model = MODELS["grouped"]
    quantizer = VectorQuantizer(torch.zeros(2, 4, 16, 16), VqSettings(num_quantizers=2))
    student = AstraDecoder(model, TOKENS, quantizer, "keys_values", 3)
    assert student.codebook_spec == CodebookSpec(2, 16, 2, "none", "keys_values", 3)
    assert AstraDecoder(model, TOKENS).codebook_spec is None


def test_what_does_not_fit_is_named() -> None:
    model = MODELS["grouped"]
    with pytest.raises(ConfigError, match="astra.quantized=key_values.*keys_values"):
        AstraDecoder(model, TOKENS, None, "key_values")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="astra.anchor_tokens=-1"):
        AstraDecoder(model, TOKENS, anchor_tokens=-1)
    with pytest.raises(ValueError, match="codebooks are for 2 layers of 24 numbers; the model has 2 x 32"):
        AstraDecoder(model, TOKENS, VectorQuantizer(random_codebooks(model, "residual", 2)), "keys_values")
    with pytest.raises(ValueError, match=r"shares are \[6, 5\]; expected positive numbers of sum 12"):
        AstraDecoder(model, TOKENS)(IDS, [6, 5])
    with pytest.raises(ValueError, match="2 devices need a quantizer"):
        AstraDecoder(model, TOKENS)(IDS, [6, 6])


def sentences(count: int, seed: int) -> NextTokens:
    """Windows whose next token is the last one plus 1 or 2, as the first token of the window says."""
    generator = torch.Generator().manual_seed(seed)
    start, stride = (torch.randint(low, high, (count, 1), generator=generator) for low, high in ((0, 24), (1, 3)))
    said = torch.full_like(start, 24) + stride
    return NextTokens(torch.cat([said, (start + stride * torch.arange(TOKENS)) % 24], dim=1))


def test_training_lowers_the_loss_and_its_result_opens(tmp_path: Path) -> None:
    model = build(GROUPED)
    student = AstraDecoder(model, TOKENS, VectorQuantizer(random_codebooks(model, "keys_values", 2)), "keys_values", 1)
    chosen = TrainingSettings(epochs=4, batch=16, learning_rate=1e-2, devices=(1, 3), random_cuts=True)
    manifest = train(student, sentences(320, 0), sentences(64, 1), chosen, tmp_path)
    history = manifest["history"]
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert history[-1]["validation_accuracy"] > 0.5
    opened = open_decoder(tmp_path / RESULT, GROUPED)
    assert opened.describe()["anchor_tokens"] == 1 and opened.tokens == TOKENS and opened.quantized == "keys_values"
    held_out = sentences(20, 2).windows_NS
    shares = [4, 4, 5]
    with torch.no_grad():
        nll_N = window_nll(lambda ids: opened(ids, shares).logits, held_out)
        torch.testing.assert_close(opened(held_out, shares).logits, student(held_out, shares).logits)
    assert perplexity(nll_N) < VOCABULARY / 4


def test_results_of_another_decoder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    save_result(path, AstraDecoder(MODELS["gpt2"], TOKENS))
    assert torch.equal(open_decoder(path, MODELS["gpt2"].config).model(IDS), MODELS["gpt2"](IDS))
    with pytest.raises(EnvironmentFault, match="holds a model of sizes"):
        open_decoder(path, GROUPED)
