"""Tokens that are sent in int8 in addition to their codes: which ones, how exactly, and how many bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.astra.int8_tokens import check_int8_tokens, int8_bits, with_int8_tokens
from testbed.astra.training.decoder import sent_shares
from testbed.comm.codecs import Int8
from testbed.errors import ConfigError


@settings(max_examples=50)
@given(
    shares=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    width=st.sampled_from([3, 32, 40]),
    count=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_the_worst_tokens_of_each_device_are_nearly_exact_and_the_others_stay(
    shares: list[int], width: int, count: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x, received = torch.randn(2, 2, sum(shares), width)
    found = with_int8_tokens(x, received, shares, count)
    for sample in range(2):
        start = 0
        for share in shares:
            own = range(start, start + share)
            worst = sorted(own, key=lambda at, of=sample: -(x[of, at] - received[of, at]).square().sum().item())[:count]
            for at in own:
                if at in worst:
                    message = Int8().encode(x[sample, at])
                    torch.testing.assert_close(found[sample, at], Int8().decode(message, (width,)))
                else:
                    assert torch.equal(found[sample, at], received[sample, at])
            start += share


def test_gradients_go_to_the_tokens_where_they_are_sent() -> None:
    x = torch.tensor([[[1.0, 2.0], [5.0, 5.0]]], requires_grad=True)
    received = torch.zeros(1, 2, 2, requires_grad=True)
    with_int8_tokens(x, received, [2], 1).sum().backward()
    assert x.grad is not None and received.grad is not None
    assert x.grad.tolist() == [[[0.0, 0.0], [1.0, 1.0]]]
    assert received.grad.tolist() == [[[1.0, 1.0], [0.0, 0.0]]]


def test_bits_are_of_numbers_scales_and_positions() -> None:
    # 40 numbers are 40 bytes and two scales of 2 bytes; positions among 5 and among 8 tokens take 3 bits
    assert int8_bits(2, 40, [5, 8]) == 2 * 2 * (8 * 44 + 3) / 13
    assert int8_bits(9, 40, [5]) == 8 * 44 + 3, "more than the tokens"
    assert int8_bits(0, 40, [5, 8]) == 0
    with pytest.raises(ConfigError, match="astra.int8_tokens=-1: must be 0 or more"):
        check_int8_tokens(-1)


@pytest.mark.parametrize(
    ("shares", "anchor_tokens", "sent"),
    [([3, 4, 5], 0, [3, 4]), ([3, 4, 5], 2, [1, 4]), ([3, 4, 5], 3, [4]), ([3, 4, 5], 5, [2]), ([3, 4], 9, [])],
)
def test_a_decoders_last_device_and_its_anchor_tokens_send_nothing(
    shares: list[int], anchor_tokens: int, sent: list[int]
) -> None:
    assert sent_shares(shares, anchor_tokens) == sent
