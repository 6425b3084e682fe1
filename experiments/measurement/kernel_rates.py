"""How fast this machine runs the kernels of a Transformer: what a device profile says about it (testbed.device.spec).

Each figure is the median of several tries after a warm-up, with torch at its default threads. Weights and inputs change
from call to call, as from layer to layer, so that the caches hold what they would hold in a forward pass.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from testbed.device.spec import Curve
from testbed.models.partial_attention import attend_part
from testbed.models.transformer import Block
from testbed.work import FLOAT_BYTES

WIDTH, HEADS = 768, 12  # of ViT-Base
ROWS = (1, 8, 32, 64, 128, 256, 512, 1024)
INNER, INNER_ROWS = (8, 24, 48, 96, 192, 384, 768, 3072), 256
COLUMNS = (768, 3072)  # of weights whose products by rows are measured
# (queries, keys) of whole sequences of 256 and 1024 tokens, and of the parts that one of four devices attends to.
ATTENTION = ((65, 65), (65, 193), (65, 257), (257, 257), (257, 769), (257, 1025), (1025, 1025))
PASS_ROWS, PASS_WIDTHS = (257, 1025), (768, 3072)  # of tensors that norms, activations and sums pass over
SETS = 12  # of weights and inputs that take turns, as the layers of ViT-Base do
TINY = 16  # numbers of an operation whose time is that of its launch
TRIES = 7  # at least


@dataclass(frozen=True)
class KernelRates:
    """What was measured. Shares are of the largest rate of a product, macs_per_s."""

    macs_per_s: float
    launch_s: float
    memory_bytes_per_s: float
    row_efficiency: Curve
    inner_efficiency: Curve
    attention_efficiency: float


class Timer:
    """Measures calls on a torch device. budget_s: for the tries of one figure; TRIES are made in any case."""

    def __init__(self, device: str, budget_s: float):
        self.device, self.budget_s = torch.device(device), budget_s

    def seconds(self, calls: Sequence[Callable[[], Any]]) -> float:
        """Median time of one call. The calls take turns. On a GPU, all of a try are started before one is awaited."""
        for call in calls:
            call()
        tries: list[float] = []
        begin = time.perf_counter()
        while len(tries) < TRIES or time.perf_counter() - begin < self.budget_s:
            tries += self.tries(calls)
        return statistics.median(tries)

    def numbers(self, *sizes: int) -> torch.Tensor:
        """Random numbers on the device."""
        return torch.randn(sizes, device=self.device)

    def tries(self, calls: Sequence[Callable[[], Any]]) -> list[float]:
        """The time of each call; on a GPU, of all calls together divided by their number."""
        if self.device.type == "cpu":
            marks = [time.perf_counter()]
            for call in calls:
                call()
                marks.append(time.perf_counter())
            return [end - begin for begin, end in itertools.pairwise(marks)]
        torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize(self.device)
        return [(time.perf_counter() - begin) / len(calls)]


@torch.no_grad()
def kernel_rates(device: str, budget_s: float, report: Callable[[int, int], None]) -> KernelRates:
    """Measure all of them on a torch device. budget_s: for each figure. report: called with (done, total) figures."""
    timer = Timer(device, budget_s)
    products = [*itertools.product(ROWS, COLUMNS)]
    total = len(products) + len(INNER) + len(ATTENTION) + len(PASS_ROWS) * len(PASS_WIDTHS) * 3 + 1
    done = itertools.count(1)

    def counted(value: float) -> float:
        report(next(done), total)
        return value

    launch_s = counted(timer.seconds([*_tiny(timer)]))
    by_rows: dict[int, list[float]] = {}
    for rows, columns in products:
        seconds = counted(timer.seconds([*_products(timer, rows, WIDTH, columns)]))
        by_rows.setdefault(rows, []).append(_rate(rows * WIDTH * columns, seconds, launch_s))
    of_rows = {rows: statistics.geometric_mean(rates) for rows, rates in by_rows.items()}
    of_inner = {
        inner: _rate(
            INNER_ROWS * inner * WIDTH, counted(timer.seconds([*_products(timer, INNER_ROWS, inner, WIDTH)])), launch_s
        )
        for inner in INNER
    }
    attention = [
        _rate(2 * queries * keys * WIDTH, counted(timer.seconds([*_attentions(timer, queries, keys)])), launch_s)
        for queries, keys in ATTENTION
    ]
    passes = [
        _rate(moved, counted(timer.seconds(calls)), launch_s)
        for rows, width in itertools.product(PASS_ROWS, PASS_WIDTHS)
        for moved, calls in _passes(timer, rows, width)
    ]
    peak = max(of_rows.values())
    return KernelRates(
        macs_per_s=peak,
        launch_s=launch_s,
        memory_bytes_per_s=statistics.median(passes),
        row_efficiency=shares(of_rows),
        inner_efficiency=shares(of_inner),
        attention_efficiency=min(1.0, statistics.median(attention) / peak),
    )


def shares(rates: dict[int, float]) -> Curve:
    """(size, share of the largest rate) by ascending size. A share is at least that of each smaller size.

    Larger products are not slower. Where a try says so, it was disturbed or met a size that suits the library less, and
    the curve keeps the share of the smaller size: the cumulative maximum.
    """
    best = list(itertools.accumulate((rates[size] for size in sorted(rates)), max))
    return tuple((float(size), rate / best[-1]) for size, rate in zip(sorted(rates), best, strict=True))


def _rate(amount: int, seconds: float, launch_s: float) -> float:
    """Amount per second, without the launch, which takes at most half of the time here."""
    return amount / max(seconds - launch_s, seconds / 2)


def _tiny(timer: Timer) -> Iterator[Callable[[], Any]]:
    """The kinds of operations that a layer consists of, each on one row of TINY numbers."""
    block = Block(TINY, 1, TINY, 1e-6, False).to(timer.device)
    x = timer.numbers(1, 1, TINY)
    yield from (partial(block.norm1, x), partial(block.mlp.fc1, x), partial(F.gelu, x), partial(torch.add, x, x))


def _products(timer: Timer, rows: int, inner: int, columns: int) -> Iterator[Callable[[], Any]]:
    for _ in range(SETS):
        layer = torch.nn.Linear(inner, columns, device=timer.device)
        yield partial(layer, timer.numbers(1, rows, inner))


def _attentions(timer: Timer, queries: int, keys: int) -> Iterator[Callable[[], Any]]:
    """As a layer calls it, of whole sequences and of parts: heads are views of projections."""
    for _ in range(SETS // 2):
        q, k, v = (
            timer.numbers(1, rows, WIDTH).unflatten(-1, (HEADS, -1)).transpose(-3, -2) for rows in (queries, keys, keys)
        )
        yield partial(F.scaled_dot_product_attention, q, k, v)
        yield partial(attend_part, q, k, v)


def _passes(timer: Timer, rows: int, width: int) -> Iterator[tuple[int, list[Callable[[], Any]]]]:
    """(bytes that one call moves, calls) of a norm, an activation and a sum."""
    x = [timer.numbers(1, rows, width) for _ in range(SETS)]
    norm = torch.nn.LayerNorm(width, device=timer.device)
    moved = FLOAT_BYTES * rows * width
    yield 2 * moved, [partial(norm, each) for each in x]
    yield 2 * moved, [partial(F.gelu, each) for each in x]
    yield 3 * moved, [partial(torch.add, each, other) for each, other in zip(x, [*x[1:], x[0]], strict=True)]
