"""Whether codeword tables pay on this machine: both ways to keys and values, timed once on the shapes in question.

Which is faster depends on the groups, the width and the caches, and no formula from multiply-accumulates tells: tables
wait for memory, products for arithmetic.

Shape suffixes as in tables.py.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from testbed.astra.quantizer import Quantizer
from testbed.astra.tables import CodewordTables, table_bytes
from testbed.models.decoder import DecoderBlock
from testbed.models.transformer import Block

REPEATS = 5
EVICTED_FLOATS = 1 << 24  # 64 MB: more than a core's share of a last-level cache


class Timing(NamedTuple):
    """Medians in ms, of caches that other layers have filled."""

    tables_ms: float
    decode_ms: float


class TableChoice:
    """Remembers what it has timed, in ``measured``, for as long as it lives.

    memory_bytes: what the tables of all layers may take together.
    """

    def __init__(self, memory_bytes: int):
        self.memory_bytes = memory_bytes
        self.measured: dict[tuple[object, ...], Timing] = {}

    def cheaper(
        self,
        block: Block | DecoderBlock,
        codebooks_GKd: Tensor,
        tokens: int,
        layers: int,
        dtype: torch.dtype = torch.float32,
    ) -> bool:
        """Whether tables fit in memory and give keys and values of ``tokens`` tokens sooner than decoding them.

        block, codebooks_GKd: of any of the ``layers``, which are alike. The first call for a shape takes as long as
        making one layer's tables and some passes of both ways. Nothing is timed where memory decides. Raises what
        CodewordTables raises.
        """
        if layers * table_bytes(block, codebooks_GKd, dtype) > self.memory_bytes:
            return False
        key, value, threads = block.attn.k.weight.shape, block.attn.v.weight.shape, torch.get_num_threads()
        shapes = (type(block.norm1), key, value, codebooks_GKd.shape, tokens, dtype, threads)
        if shapes not in self.measured:
            self.measured[shapes] = _time(block, codebooks_GKd, tokens, dtype)
        timing = self.measured[shapes]
        return timing.tables_ms < timing.decode_ms


@torch.no_grad()
def _time(block: Block | DecoderBlock, codebooks_GKd: Tensor, tokens: int, dtype: torch.dtype) -> Timing:
    tables, quantizer = CodewordTables(block, codebooks_GKd, dtype), Quantizer(codebooks_GKd[None])
    groups, size, _ = codebooks_GKd.shape
    codes_PG = torch.randint(size, (tokens, groups), generator=torch.Generator().manual_seed(0))
    evicted = torch.zeros(EVICTED_FLOATS)

    def elapsed_ms(work: Callable[[], object]) -> float:
        evicted.add_(1)
        started = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - started)

    def look_up() -> object:
        return tables.keys_values(codes_PG)

    def project() -> object:
        return block.attn.keys_values(block.norm1(quantizer.decode(0, codes_PG)[None]))

    for way in (look_up, project):  # once for memory and libraries that are set up at first use
        way()
    times = [(elapsed_ms(look_up), elapsed_ms(project)) for _ in range(REPEATS)]  # in turn, so that noise meets both
    return Timing(*(statistics.median(ms) for ms in zip(*times, strict=True)))
