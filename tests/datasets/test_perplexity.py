"""Perplexity of predictors whose loss is known."""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from testbed.datasets.perplexity import perplexity, window_nll
from testbed.errors import TestbedError

WINDOWS = torch.tensor([[1, 2, 3, 0], [3, 3, 1, 2], [0, 0, 0, 0]])


def test_uniform_logits_give_the_size_of_the_vocabulary():
    nll = window_nll(lambda ids: torch.zeros(1, ids.shape[1], 7), WINDOWS)
    assert nll.shape == (3,) and nll.dtype == torch.float64
    assert perplexity(nll) == pytest.approx(7)


def test_row_i_is_evaluated_by_the_token_after_it():
    def oracle(ids):  # gives the next token e^2 times the probability of each of the 3 others
        return 2.0 * one_hot(ids.roll(-1, dims=1), 4)

    expected = math.log(math.exp(2) + 3) - 2
    assert window_nll(oracle, WINDOWS).tolist() == pytest.approx([expected] * 3)

    def repeater(ids):  # predicts the current token again; correct in all of the last window, once in the second
        return 2.0 * one_hot(ids, 4)

    wrong = math.log(math.exp(2) + 3)
    one_right = (2 * wrong + expected) / 3
    assert window_nll(repeater, WINDOWS).tolist() == pytest.approx([wrong, one_right, expected])


def test_perplexity_is_that_of_the_mean_loss():
    assert perplexity(torch.tensor([math.log(2), math.log(8)])) == pytest.approx(4)


def test_progress_is_reported():
    reports = []
    window_nll(lambda ids: torch.zeros(1, 4, 4), WINDOWS, lambda done, total: reports.append((done, total)))
    assert reports == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_likelihood_that_is_not_finite_names_its_window(value):
    def broken(ids):
        logits = torch.zeros(1, 4, 4)
        logits[0, 0, 3] = value if ids[0, 0] == 3 else 0.0
        return logits

    with pytest.raises(TestbedError, match=r"log-likelihood of window 1 is (nan|inf), not a finite number"):
        window_nll(broken, WINDOWS)


def test_a_perplexity_beyond_float64_is_infinite():
    assert perplexity(torch.tensor([1000.0, 1000.0], dtype=torch.float64)) == math.inf
