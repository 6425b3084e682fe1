"""Attention in parts against one softmax in float64, with PyTorch's kernel and without it."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.models import partial_attention
from testbed.models.partial_attention import PartialAttention, attend_part, merge


def draw(seed, queries, keys, heads=2, shared=2, width=4, batch=1):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, heads, queries, width, generator=generator),
        torch.randn(batch, shared, keys, width, generator=generator),
        torch.randn(batch, shared, keys, width, generator=generator),
    )


def one_softmax(q, k, v, bias=None):
    """The same in float64, written out. A query that sees no key has 0 and -inf."""
    q, k, v = q.double(), k.double(), v.double()
    repeat = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(repeat, 1).mT / math.sqrt(q.shape[-1])
    if bias is not None:
        scores = scores + bias
    weights = scores.softmax(-1).nan_to_num(0.0)
    return PartialAttention(weights @ v.repeat_interleave(repeat, 1), scores.logsumexp(-1))


def as_bias(visible):
    return torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -math.inf)


def assert_same(part, expected, atol=1e-6):
    torch.testing.assert_close(part.out.double(), expected.out, atol=atol, rtol=1e-6)
    torch.testing.assert_close(part.lse.double(), expected.lse, atol=2 * atol, rtol=1e-6)


@settings(max_examples=80)
@given(
    seed=st.integers(0, 1000),
    queries=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (3, 3), (6, 2), (4, 1)]),
    width=st.integers(1, 9),
    density=st.sampled_from([None, 0.1, 0.5, 0.9]),
    grad=st.booleans(),
)
def test_parts_merge_to_one_softmax_over_their_keys(seed, queries, cuts, heads, width, density, grad):
    q, k, v = draw(seed, queries, sum(cuts), *heads, width, batch=2)
    visible = None
    if density is not None:
        visible = torch.rand(queries, sum(cuts), generator=torch.Generator().manual_seed(seed)) < density
    q.requires_grad_(grad)  # chooses the implementation
    masks = [None] * len(cuts) if visible is None else visible.split(cuts, dim=1)
    parts = [
        attend_part(q, k_part, v_part, mask)
        for k_part, v_part, mask in zip(k.split(cuts, dim=2), v.split(cuts, dim=2), masks, strict=True)
    ]
    assert_same(merge(parts), one_softmax(q, k, v, None if visible is None else as_bias(visible)))


@pytest.mark.parametrize("grad", [False, True])
def test_merging_in_two_steps_equals_merging_in_one(grad):
    q, k, v = draw(0, 9, 30)
    q.requires_grad_(grad)
    parts = [attend_part(q, k[:, :, i : i + 10], v[:, :, i : i + 10]) for i in (0, 10, 20)]
    two_steps, one_step = merge([merge(parts[:2]), parts[2]]), merge(parts)
    torch.testing.assert_close(two_steps.out, one_step.out)
    torch.testing.assert_close(two_steps.lse, one_step.lse)


@pytest.mark.parametrize("shape", [(1, 1), (3, 513), (257, 700), (33, 1537)])
def test_the_kernel_is_correct_where_whole_blocks_of_keys_are_hidden(shape):
    # The kernel processes the keys in blocks of some hundreds; a fully masked block must not change the result.
    queries, keys = shape
    q, k, v = draw(1, *shape)
    visible = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.5
    visible[:, : keys // 2] = False
    visible[queries // 2 :] = False
    assert_same(attend_part(q, k, v, visible), one_softmax(q, k, v, as_bias(visible)))
    bias = torch.randn(1, keys, generator=torch.Generator().manual_seed(3))
    bias[:, 2 * keys // 3 :] = -math.inf
    assert_same(attend_part(q, k, v, bias), one_softmax(q, k, v, bias))


def test_large_scores_do_not_overflow():
    q, k, v = draw(3, 5, 20)
    q = 1000 * q
    halves = [attend_part(q, k[:, :, i : i + 10], v[:, :, i : i + 10]) for i in (0, 10)]
    assert max(part.lse.max() for part in halves) > 200
    assert_same(merge(halves), one_softmax(q, k, v), atol=1e-3)


def test_keys_and_queries_that_are_views_give_the_same():
    q, k, v = draw(4, 20, 30, heads=3, shared=3)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert not views[0].is_contiguous()
    torch.testing.assert_close(attend_part(*views).out, attend_part(q, k, v).out)


def test_gradients_reach_all_inputs_of_both_parts():
    def attend(q, k, v):
        return merge([attend_part(q, k[:, :, :2], v[:, :, :2]), attend_part(q, k[:, :, 2:], v[:, :, 2:])]).out

    inputs = [x.double().requires_grad_() for x in draw(5, 3, 5)]
    assert torch.autograd.gradcheck(attend, inputs)


def test_mixed_puts_heads_side_by_side():
    part = attend_part(*draw(6, 5, 7, heads=2, width=4))
    assert torch.equal(part.mixed()[0, 3], torch.cat([part.out[0, 0, 3], part.out[0, 1, 3]]))


@pytest.mark.parametrize("mask", [(5,), (4, 7), (5, 6), (1, 1, 5, 7)])
def test_a_mask_of_another_shape_raises(mask):
    with pytest.raises(ValueError, match=r"expected \[5, 7\] or \[1, 7\]"):
        attend_part(*draw(7, 5, 7), torch.ones(mask, dtype=torch.bool))


def test_the_tested_torch_has_the_kernel():
    assert partial_attention.cpu_flash_attention() is not None
    assert partial_attention.KERNEL is partial_attention.cpu_flash_attention()


@pytest.mark.parametrize(("name", "value"), [("OPERATOR", "no_such_operator"), ("ARGUMENTS", ["query", "key"])])
def test_an_operator_that_is_missing_or_different_is_not_used(monkeypatch, name, value):
    monkeypatch.setattr(partial_attention, name, value)
    assert partial_attention.cpu_flash_attention() is None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "shared"), [(3, 3), (6, 2)])
def test_results_without_the_kernel_are_equal_and_one_warning_says_what_it_costs(monkeypatch, heads, shared, masked):
    q, k, v = draw(8, 33, 70, heads, shared, width=8, batch=2)
    mask = torch.rand(33, 70, generator=torch.Generator().manual_seed(9)) < 0.5 if masked else None
    expected = attend_part(q, k, v, mask)
    monkeypatch.setattr(partial_attention, "KERNEL", None)
    partial_attention.warn_without_kernel.cache_clear()
    with pytest.warns(UserWarning, match="has no operator aten::_scaled.*3.6 to 4.8 times as long"):
        found = attend_part(q, k, v, mask)
    torch.testing.assert_close(found.out, expected.out, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.lse, expected.lse, atol=1e-6, rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attend_part(q, k, v, mask)
