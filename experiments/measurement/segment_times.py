"""Times of the segments of a forward pass, computed one at a time (experiments.measurement.turns)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from experiments.measurement.turns import LocalGroup, in_turns
from testbed import compressed_collectives
from testbed.comm import codecs
from testbed.compressed_collectives import summed_by_transport
from testbed.device.clock import DeviceClock
from testbed.methods.base import CompressedMethod, Method
from testbed.work import Work

T = TypeVar("T")
OF_CODECS = (compressed_collectives.__name__, codecs.__name__)  # modules whose functions are segments of every method


@dataclass(frozen=True)
class Segment:
    """What a segment computes: ``name`` in words, the kernels that the formulas say, and whether it computes at all."""

    name: str
    work: Work
    computes: bool


class TimedClock(DeviceClock):
    """Runs segments in one thread, which computes for all ranks, and times each. seen: (segment, seconds)."""

    def __init__(self, method: Method, computing: ThreadPoolExecutor, synchronize: Callable[[], None]):
        super().__init__()
        self.seen: list[tuple[Segment, float]] = []
        self._method, self._computing, self._synchronize = method, computing, synchronize

    def run(self, kind: str, work: Work, segment: Callable[[], T]) -> T:
        """See DeviceClock.run."""
        output, seconds = self._computing.submit(self._timed, segment).result()
        self.seen.append((describe(self._method, work, segment), seconds))
        return output

    @torch.no_grad()
    def _timed(self, segment: Callable[[], T]) -> tuple[T, float]:
        self._synchronize()
        begin = time.perf_counter()
        output = segment()
        self._synchronize()
        return output, time.perf_counter() - begin


def describe(method: Method, work: Work, segment: Callable[[], Any]) -> Segment:
    """The name is that of the segment's function, after the method; or after the codec, for the steps of codecs.

    So the same step of a codec has one name in all methods.
    """
    function: Any = segment
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__name__)  # a layer of a model is no function
    words = name.removesuffix(".<locals>.<lambda>").rpartition(".")[2].strip("_").replace("_", " ")
    owner = method.name
    if isinstance(method, CompressedMethod) and getattr(function, "__module__", "") in OF_CODECS:
        owner = method.codec.name
    return Segment(f"{owner}: {words}", work, function is not summed_by_transport)


def segment_times(
    method: Method, shards: list[Any], inputs: Tensor, passes: int, synchronize: Callable[[], None]
) -> dict[Segment, list[float]]:
    """Seconds of each segment in ``passes`` forward passes on all ranks, after a warm-up. shards: of each rank.

    Segments with the same name and the same kernels are one segment, in whatever layer and on whatever rank.
    """
    with ThreadPoolExecutor(1) as computing:

        def rank_main(group: LocalGroup) -> list[tuple[Segment, float]]:
            clock = TimedClock(method, computing, synchronize)
            method.forward(inputs, shards[group.rank], group, clock)
            return clock.seen

        in_turns(len(shards), rank_main)
        ran = [seen for _ in range(passes) for seen in in_turns(len(shards), rank_main)]
    found: dict[Segment, list[float]] = {}
    for segment, seconds in (each for seen in ran for each in seen):
        found.setdefault(segment, []).append(seconds)
    return found
