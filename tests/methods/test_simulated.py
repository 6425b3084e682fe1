"""Methods with a lossy codec, or not exact by design: equal to their simulation in one process, bytes by formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from testbed.comm.codecs import CODECS
from testbed.compressed_collectives import Relay
from testbed.methods import load_method
from tests.methods.passes import EXACT, SPLITS, check_accounts, execute_and_replay
from tests.methods.small import layer_inputs, pixels, small_model

COMPRESSED = {label: variant for label, variant in EXACT.items() if label != "single"}
APPROXIMATE: dict[str, tuple[str, dict[str, Any]]] = {
    "block Nb=1": ("block", {"blocks": 1}),
    "block Nb=2": ("block", {"blocks": 2}),
    "block Nb=1 sp": ("block", {"blocks": 1, "sync": "sp"}),
    "block Nb=2 sp": ("block", {"blocks": 2, "sync": "sp"}),
    "prism S=1": ("prism", {"segment_means": 1}),
    "prism S=3": ("prism", {"segment_means": 3}),
}
VARIANTS = COMPRESSED | APPROXIMATE
LOSSY = [name for name, codec in CODECS.items() if codec.lossy]


# (codec, number of ranks, their speeds)
RUNS = [(codec, world, ()) for codec in CODECS for world in (1, 2, 3, 4) if world > 1 or codec in ("fp32", "int8")]
RUNS += [(codec, world, speeds) for codec in ("fp32", "int8") for world, speeds in SPLITS if speeds]
# block splits features equally: test_block_splits_features_equally_only
CASES = [(name, *run) for name in VARIANTS for run in RUNS if not (run[2] and VARIANTS[name][0] == "block")]


@pytest.mark.parametrize(("variant", "codec", "world", "speeds"), CASES, ids=str)
def test_methods_equal_their_simulation(variant: str, codec: str, world: int, speeds: tuple[float, ...]) -> None:
    name, settings = VARIANTS[variant]
    method = load_method(name, speeds, **settings, codec=codec)
    assert method.label == variant + (f" {codec}" if codec != "fp32" else "")
    model = small_model("layer_scale" if speeds and name in ("tensor", "megatron_sp", "galaxy") else "plain")
    inputs = pixels(model)
    passes = execute_and_replay(method, model, inputs, world)
    check_accounts(passes, method, model)
    outputs = [executed.output for executed, _ in passes]
    hidden, logits = method.simulate(model, inputs, world, [output.messages for output in outputs])
    covered = torch.zeros(model.shape.tokens, dtype=torch.bool)
    for output in outputs:
        if output.hidden is None:
            continue
        stop = output.start + len(output.hidden)
        covered[output.start : stop] = True
        torch.testing.assert_close(output.hidden, hidden[output.start : stop], atol=1e-4, rtol=0)
        if output.logits is not None:
            torch.testing.assert_close(output.logits, logits, atol=1e-4, rtol=0)
    assert covered.all() and any(output.logits is not None for output in outputs)
    error = (hidden - layer_inputs(model, inputs)[-1][1:]).abs().max()
    exact = world == 1 or (codec == "fp32" and variant in COMPRESSED)
    assert error < 1e-4 if exact else error > 1e-3 * (codec != "fp16")
    assert method.exact == (codec == "fp32" and variant in COMPRESSED)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_simulation_without_messages_is_near_one_with_them(variant: str, codec: str) -> None:
    """Without messages the simulation encodes itself: other rounding, but at the same places."""
    name, settings = VARIANTS[variant]
    method, model = load_method(name, **settings, codec=codec), small_model("plain")
    inputs = pixels(model)
    passes = execute_and_replay(method, model, inputs, 2)
    with_messages, _ = method.simulate(model, inputs, 2, [executed.output.messages for executed, _ in passes])
    without, _ = method.simulate(model, inputs, 2)
    exact = layer_inputs(model, inputs)[-1][1:]
    assert (with_messages - without).square().mean() <= 0.1 * (with_messages - exact).square().mean()


def test_more_bits_give_less_error() -> None:
    """Each codec is really applied."""
    model = small_model("plain")
    inputs = pixels(model)
    exact = layer_inputs(model, inputs)[-1][1:]
    for variant, (name, settings) in COMPRESSED.items():
        errors = {}
        for codec in ("fp16", "int8", "int4"):
            hidden, _ = load_method(name, **settings, codec=codec).simulate(model, inputs, 4)
            errors[codec] = (hidden - exact).square().mean().sqrt().item()
        assert 4 * errors["fp16"] < errors["int8"] < errors["int4"] / 4, variant


def test_as_many_groups_as_layers_decouple_nothing() -> None:
    model = small_model("layer_scale")
    inputs = pixels(model)
    for sync in ("ag", "sp"):
        hidden, logits = load_method("block", blocks=4, sync=sync).simulate(model, inputs, 3)
        torch.testing.assert_close(hidden, layer_inputs(model, inputs)[-1][1:], atol=1e-4, rtol=0)
        torch.testing.assert_close(logits, model(inputs)[0].detach(), atol=1e-4, rtol=0)


def test_segments_of_one_row_are_exact() -> None:
    model = small_model("plain")  # 22 rows
    inputs = pixels(model)
    hidden, logits = load_method("prism", segment_means=11).simulate(model, inputs, 2)
    torch.testing.assert_close(hidden, layer_inputs(model, inputs)[-1][1:], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, model(inputs)[0].detach(), atol=1e-4, rtol=0)


def test_a_mean_has_the_weight_of_its_rows() -> None:
    """Where all rows of a device are equal, attention to their means is exact if the means' weights are correct."""
    model, rows = small_model("plain"), torch.tensor([8, 7, 7])
    inputs = torch.ones_like(pixels(model))
    with torch.no_grad():
        of_device = torch.randn(3, model.config.hidden, generator=torch.Generator().manual_seed(4))
        model.position.copy_(of_device.repeat_interleave(rows, 0)[None])
        model.class_token.copy_(model.patch_embed(model.patches(inputs))[:, :1])
    hidden, _ = load_method("prism", segment_means=2).simulate(model, inputs, 3)
    torch.testing.assert_close(hidden, layer_inputs(model, inputs)[-1][1:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("codec", LOSSY)
def test_a_wrong_message_raises(codec: str) -> None:
    model, method = small_model("plain"), load_method("sequence", codec=codec)
    inputs = pixels(model)
    messages = [executed.output.messages for executed, _ in execute_and_replay(method, model, inputs, 2)]
    exchanged = [[own[1], own[0], *own[2:]] for own in messages]  # layers 0 and 1
    with pytest.raises(ValueError, match=f"a message of rank 0 is .* beyond the error of {codec}"):
        method.simulate(model, inputs, 2, exchanged)
    with pytest.raises(ValueError, match="rank 0 sent fewer messages than the simulation"):
        method.simulate(model, inputs, 2, [own[:-1] for own in messages])


def test_a_lossless_relay_changes_nothing() -> None:
    relay, parts = Relay(CODECS["fp32"], 2), [torch.randn(3, 4), torch.randn(2, 4)]
    assert all(torch.equal(seen, torch.cat(parts)) for seen in relay.all_gather_seen(parts))
    terms = [torch.randn(5, 4), torch.randn(5, 4)]
    assert torch.equal(relay.all_reduce(terms, [3, 2]), terms[0] + terms[1])
