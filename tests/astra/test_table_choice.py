import torch

from testbed.astra import table_choice
from testbed.astra.table_choice import TableChoice, Timing
from testbed.astra.tables import table_bytes
from testbed.models.transformer import Block


def block_of(hidden):
    return Block(hidden, 2, 8, 1e-6, layer_scale=False).eval().requires_grad_(False)


def test_few_wide_groups_pay_and_groups_of_single_numbers_do_not():
    block, choice = block_of(512), TableChoice(memory_bytes=10**9)
    assert choice.cheaper(block, torch.randn(1, 16, 512), tokens=256, layers=1)
    # as many additions as there are products, each number from memory: nothing is saved
    assert not choice.cheaper(block, torch.randn(512, 16, 1), tokens=256, layers=1)
    assert all(min(timing) > 0 for timing in choice.measured.values()) and len(choice.measured) == 2


def test_memory_decides_before_anything_is_made_or_timed():
    block, codebooks = block_of(64), torch.randn(1, 16, 64)
    size = table_bytes(block, codebooks)
    choice = TableChoice(memory_bytes=3 * size - 1)
    assert not choice.cheaper(block, codebooks, tokens=8, layers=3)
    assert not choice.measured


def test_each_shape_is_timed_once_and_the_faster_way_wins(monkeypatch):
    answers = iter([Timing(1.0, 2.0), Timing(2.0, 1.0), Timing(1.0, 2.0)])
    monkeypatch.setattr(table_choice, "_time", lambda *shapes: next(answers))
    block, codebooks = block_of(64), torch.randn(1, 16, 64)
    choice = TableChoice(memory_bytes=10**9)
    assert [choice.cheaper(block, codebooks, tokens, layers=1) for tokens in (8, 9, 8, 9)] == [True, False, True, False]
    assert choice.cheaper(block, codebooks, 9, layers=1, dtype=torch.bfloat16)
    assert len(choice.measured) == 3
