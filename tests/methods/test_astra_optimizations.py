"""ASTRA's optimizations alone and together: outputs as simulated, bytes and MACs by formula."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from testbed.astra.optimizations import Optimizations, candidates
from testbed.astra.quantized import Quantized, quantized_width
from testbed.astra.quantizer import Quantizer
from testbed.astra.reference_vit import simulate
from testbed.astra.training.decoder import AstraDecoder
from testbed.astra.training.ema_quantizer import VectorQuantizer, VqSettings
from testbed.comm.group import even_shares
from testbed.comm.wire import Wire
from testbed.device.spec import Device
from testbed.errors import ConfigError
from testbed.methods.astra import Astra
from testbed.models.gpt2 import Gpt2, Gpt2Config
from testbed.models.llama import Llama, LlamaConfig, Rotary
from tests.methods.passes import check_accounts, execute_and_replay, joined_hidden
from tests.methods.small import pixels, random_codebooks, small_model
from tests.methods.test_formulas import VIT

ALONE = ["paper", "lut", "dedup", "overlap", "overlap+chunks3"]
TOGETHER = ["lut+overlap+chunks2", "lut+dedup+overlap+chunks3"]
TOKENS = 21
# (number of ranks, their speeds): equal shares, and the most unequal shares of three chunks or more
RANKS: list[tuple[int, tuple[float, ...]]] = [*((world, ()) for world in (1, 2, 3, 4)), (4, (3.0, 1.0, 2.0, 1.0))]


def groups_for(optimizations: str) -> int:
    return 1 if "dedup" in optimizations else 3


@pytest.mark.parametrize(("world", "speeds"), RANKS, ids=str)
@pytest.mark.parametrize("optimizations", ALONE + TOGETHER)
def test_a_vit_gives_what_the_simulation_gives(
    optimizations: str, world: int, speeds: tuple[float, ...], tmp_path: Path
) -> None:
    model, method = small_model("plain"), Astra(groups_for(optimizations), 32, optimizations)
    method.speeds = speeds
    inputs, codebooks = pixels(model), random_codebooks(model, method.groups, 32)
    method.attach(codebooks, cache=tmp_path)
    passes = execute_and_replay(method, model, inputs, world)
    check_accounts(passes, method, model)
    sent = [executed.output.codes for executed, _ in passes if executed.output.codes is not None]
    codes = torch.cat(sent, dim=1) if sent else None
    expected = simulate(model, Quantizer(codebooks), inputs, method.shares(model.shape.tokens, world), codes)
    torch.testing.assert_close(joined_hidden(passes, model.shape.tokens), expected.hidden, atol=1e-4, rtol=0)
    for executed, _ in passes:
        assert executed.output.logits is not None
        torch.testing.assert_close(executed.output.logits, expected.logits, atol=1e-4, rtol=0)


def decoder(kind: str) -> Llama | Gpt2:
    torch.manual_seed(4)
    if kind == "llama":
        model: Llama | Gpt2 = Llama(LlamaConfig(3, 48, 4, 2, 12, 64, 31, 1e-5, Rotary(12, 100.0), tied=True))
    else:
        model = Gpt2(Gpt2Config(layers=3, hidden=48, heads=4, mlp_hidden=64, vocabulary=31, positions=32))
    model.tokens = TOKENS
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(("world", "speeds"), RANKS, ids=str)
@pytest.mark.parametrize("optimizations", ALONE + TOGETHER)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_causal_model_gives_what_the_simulation_gives(
    kind: str, optimizations: str, world: int, speeds: tuple[float, ...], tmp_path: Path
) -> None:
    if kind == "llama" and "dedup" in optimizations:
        pytest.skip("rotary embeddings do not allow dedup")
    model, method = decoder(kind), Astra(groups_for(optimizations), 32, optimizations)
    method.speeds = speeds
    generator = torch.Generator().manual_seed(5)
    codebooks = 0.1 * torch.randn(3, method.groups, 32, 48 // method.groups, generator=generator)
    ids = torch.randint(31, (1, TOKENS), generator=generator)
    method.attach(codebooks, cache=tmp_path)
    passes = execute_and_replay(method, model, ids, world)
    check_accounts(passes, method, model)
    student = AstraDecoder(model, TOKENS, VectorQuantizer(codebooks)).eval()
    expected = student(ids, method.shares(TOKENS, world), keep_states=True)
    hidden = model.norm(expected.states[-1])[0]
    torch.testing.assert_close(joined_hidden(passes, TOKENS), hidden, atol=1e-4, rtol=0)
    answers = [executed.output.logits for executed, _ in passes]
    assert all(answer is None for answer in answers[:-1])
    torch.testing.assert_close(answers[-1], expected.logits[0, -1], atol=1e-4, rtol=0)
    if world > 1:
        assert (hidden - model.norm(student(ids, [TOKENS], keep_states=True).states[-1])[0]).abs().max() > 1e-2


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("quantized", "anchor_tokens", "num_quantizers", "pre_rotation", "optimizations"),
    [
        (*settings, optimizations)
        for settings in [
            *[("normalized", 0, 1, "none"), ("keys_values", 0, 1, "none"), ("residual", 3, 1, "pca")],
            *[("keys_values", 3, 2, "pca"), ("residual", 0, 2, "none")],
        ]
        for optimizations in ("paper", "overlap+chunks2")
    ]
    + [("residual", 3, 1, "pca", "lut+overlap+chunks2")],
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_quantized_tensors_anchor_tokens_stages_and_rotation(
    kind: str,
    quantized: Quantized,
    anchor_tokens: int,
    num_quantizers: int,
    pre_rotation: str,
    optimizations: str,
    world: int,
) -> None:
    model, method = decoder(kind), Astra(4, 32, optimizations, quantized, anchor_tokens, num_quantizers, pre_rotation)
    generator = torch.Generator().manual_seed(6)
    width = quantized_width(model.shape, quantized)
    codebooks = 0.3 * torch.randn(3, 4 * num_quantizers, 32, width // 4, generator=generator)
    ids = torch.randint(31, (1, TOKENS), generator=generator)
    rotations = torch.linalg.qr(torch.randn(3, width, width, generator=generator)).Q.contiguous()
    rotation_LWW = None if pre_rotation == "none" else rotations
    method.attach(codebooks, rotation_LWW)
    passes = execute_and_replay(method, model, ids, world)
    check_accounts(passes, method, model)
    quantizer = VectorQuantizer(codebooks, VqSettings(num_quantizers=num_quantizers), rotation_LWW)
    student = AstraDecoder(model, TOKENS, quantizer, quantized, anchor_tokens).eval()
    expected = student(ids, even_shares(TOKENS, world), keep_states=True)
    torch.testing.assert_close(joined_hidden(passes, TOKENS), model.norm(expected.states[-1])[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(passes[-1][0].output.logits, expected.logits[0, -1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Astra(4, 32, quantized="all"), "astra.quantized=all: "),
        (
            Astra(4, 32, "lut", "normalized"),
            "astra.quantized=normalized: must be residual for astra.optimizations=lut",
        ),
        (
            Astra(4, 32, "lut+overlap", num_quantizers=2),
            "astra.num_quantizers=2: must be 1 for astra.optimizations=lut.overlap",
        ),
        (Astra(4, 32, num_quantizers=0), "astra.num_quantizers=0: must be 1 or more"),
        (Astra(4, 32, anchor_tokens=2), "astra.anchor_tokens=2: must be 0, or for a causal model"),
        (Astra(3, 32, "dedup"), "astra.groups=3: must be 1 for astra.optimizations=dedup"),
        (
            Astra(1, 32, "overlap+chunks16"),
            "astra.optimizations=overlap.chunks16: must have at most 10 chunks, the tokens that a device sends",
        ),
    ],
)
def test_settings_that_exclude_each_other(method: Astra, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        method.check(small_model("plain").shape, 2)


@pytest.mark.parametrize(
    "text",
    ["", "fast", "paper+tables", "lut+lut", "chunks2", "overlap+chunks1", "overlap+chunks17", "overlap+split"],
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"astra.optimizations=.* must be paper, auto, or lut"):
        Astra(optimizations=text)


@given(st.builds(Optimizations, st.booleans(), st.booleans(), st.just(True), st.integers(1, 16)))
def test_optimizations_have_one_text_each(optimizations: Optimizations) -> None:
    assert Optimizations.parse(str(optimizations)) == optimizations
    assert str(Optimizations.parse("paper")) == "paper"


def test_auto_takes_the_fastest_that_fits() -> None:
    devices = [Device(3e11, 216e9, 6e9)] * 4
    for groups in (1, 32):
        for rate in (10e6, 100e6, 500e6):
            method, wire = Astra(groups, optimizations="auto"), Wire(rate, packets=True, exchange_s=250e-6)
            chosen = method.resolve(VIT, devices, wire)["optimizations"]
            cost_s = {
                str(x): Astra(groups, optimizations=str(x)).predicted_s(VIT, devices, wire)
                for x in candidates(groups, rotary=False)
            }
            assert cost_s[chosen] == min(cost_s.values())
            assert cost_s[chosen] < Astra(groups).predicted_s(VIT, devices, wire)
    assert "lut" in Astra(32, optimizations="auto").resolve(VIT, devices, Wire(1e7))["optimizations"]
    for odd in (Device(3e11, 216e9, 2e9), Device(3e11, 1e9, 6e9)):  # too little memory, or too slow, for lookup tables
        assert (
            "lut" not in Astra(32, optimizations="auto").resolve(VIT, [*devices[:3], odd], Wire(1e7))["optimizations"]
        )
    # Tables of 32 x 1024 rows in 12 layers take 2.4 GB, and the weights 0.34 GB: memory for either is not enough.
    table_gb, weight_gb = 12 * 32 * 1024 * (2 * 768 * 4 + 16) / 1e9, VIT.weight_bytes / 1e9
    assert weight_gb == pytest.approx(4 * (12 * 12 * 768**2 + 768 * (768 + 1000)) / 1e9)
    for room_gb, fits in ((table_gb + weight_gb + 0.01, True), (table_gb + weight_gb - 0.01, False)):
        chosen = Astra(32, optimizations="auto").resolve(VIT, [Device(3e11, 216e9, 1e9 * room_gb)] * 4, Wire(1e7))
        assert ("lut" in chosen["optimizations"]) == fits
    assert "dedup" in Astra(1, 256, "auto").resolve(VIT, devices, Wire(1e7))["optimizations"]
    assert Astra(optimizations="overlap").resolve(VIT, devices, Wire(1e7)) == {}
