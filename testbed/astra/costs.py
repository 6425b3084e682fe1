"""Who has which tokens, who sends them to whom, and what that costs: the numbers of ASTRA without its tensors.

A rank has ``kept`` rows that are never sent (its copy of the class token, or of the anchor_tokens: first tokens that
every device of a causal model computes itself), then its share of the tokens. Those it sends to all others, in chunks.
Devices of a causal model attend to earlier devices only, so the last one sends nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

from testbed.astra.bit_packing import index_bits, packed_bytes
from testbed.astra.optimizations import Optimizations
from testbed.astra.quantized import Quantized, quantized_width
from testbed.comm.group import even_shares
from testbed.device.spec import Device
from testbed.models.shape import ModelShape

FLOAT_BYTES, FLOAT_BITS = 4, 32


@dataclass(frozen=True)
class Split:
    """One rank's view of a sequence over devices, in ``chunks``; the first ``anchor_tokens`` tokens stay exact.

    shares: tokens of each rank.
    """

    shape: ModelShape
    shares: list[int]
    rank: int
    chunks: int = 1
    anchor_tokens: int = 0

    @property
    def world(self) -> int:
        """Devices."""
        return len(self.shares)

    @property
    def start(self) -> int:
        """The position of this rank's first token."""
        return sum(self.shares[: self.rank])

    @property
    def copies(self) -> int:
        """Own rows that are copies of anchor tokens; device 0 has the anchor tokens themselves among its tokens."""
        return self.anchor_tokens if self.rank else 0

    @property
    def kept(self) -> int:
        """Own rows that are copies, and never sent."""
        return self.shape.class_tokens + self.copies

    @property
    def rows(self) -> int:
        """Own rows."""
        return self.kept + self.shares[self.rank]

    def sends(self, rank: int) -> bool:
        """Whether anybody attends to this rank's tokens."""
        return self.world > 1 and not (self.shape.causal and rank == self.world - 1)

    @property
    def sources(self) -> list[int]:
        """The ranks whose tokens this one receives and attends to."""
        ranks = range(self.rank) if self.shape.causal else range(self.world)
        return [rank for rank in ranks if rank != self.rank]

    def sent_tokens(self, rank: int) -> list[int]:
        """Tokens of each chunk that a rank sends."""
        return self._cut(rank) if self.sends(rank) else [0] * self.chunks

    @cached_property
    def chunk_rows(self) -> list[tuple[int, int]]:
        """(first, last + 1) of the own rows of each chunk; those that are not sent belong to the first."""
        cut = self._cut(self.rank)
        ends = itertools.accumulate(cut, initial=self.rows - sum(cut))
        return [(first if chunk else 0, last) for chunk, (first, last) in enumerate(itertools.pairwise(ends))]

    def received_tokens(self, chunk: int) -> int:
        """Tokens of a chunk of all sources."""
        return sum(self.sent_tokens(rank)[chunk] for rank in self.sources)

    def received_positions(self, chunk: int) -> list[tuple[int, int]]:
        """(first, last + 1) position of each source's tokens of a chunk."""
        spans = []
        for rank in self.sources:
            first = sum(self.shares[:rank]) or self.anchor_tokens
            ends = [*itertools.accumulate(self.sent_tokens(rank), initial=first)]
            spans.append((ends[chunk], ends[chunk + 1]))
        return spans

    def _cut(self, rank: int) -> list[int]:
        return even_shares(self.shares[rank] - (0 if rank else self.anchor_tokens), self.chunks)


@dataclass(frozen=True)
class SegmentCost:
    """What a segment costs a device: multiply-accumulates, and bytes of its memory where these take the time."""

    macs: int = 0
    moved_bytes: int = 0

    def seconds(self, device: Device) -> float:
        """On a device."""
        return device.seconds(self.macs, self.moved_bytes)


@dataclass(frozen=True)
class Costs:
    """Slots and messages of one rank's layers, by formula. Encoding is K·D a token and level, and so real work."""

    split: Split
    groups: int
    codebook_size: int
    optimizations: Optimizations
    quantized: Quantized = "residual"
    num_quantizers: int = 1
    pre_rotated: bool = False  # before codes and after, by a matrix of W x W

    def encode(self, chunk: int) -> SegmentCost:
        """Nearest codewords of an own chunk, and its keys and values, if these are what is quantized."""
        shape, tokens = self.split.shape, self.split.sent_tokens(self.split.rank)[chunk]
        project = shape.key_value_macs(tokens) if self.quantized == "keys_values" else 0
        width = quantized_width(shape, self.quantized)
        return SegmentCost(
            project + tokens * width * (self.num_quantizers * self.codebook_size + self.pre_rotated * width)
        )

    def local(self) -> SegmentCost:
        """Queries of own rows, keys and values of those that have none yet, and attention among them."""
        shape, rows = self.split.shape, self.split.rows
        encoded = sum(self.split.sent_tokens(self.split.rank)) if self.quantized == "keys_values" else 0
        return SegmentCost(
            shape.query_macs(rows) + shape.key_value_macs(rows - encoded) + shape.attend_macs(rows, rows)
        )

    def expand(self, chunk: int) -> SegmentCost:
        """Keys and values of a received chunk: by projection, or by reading rows of tables."""
        shape, tokens = self.split.shape, self.split.received_tokens(chunk)
        row_bytes = 2 * shape.key_width * FLOAT_BYTES
        if self.optimizations.dedup:
            return SegmentCost(moved_bytes=2 * self._keys(tokens) * row_bytes)  # read, written side by side
        if self.optimizations.lut:
            return SegmentCost(
                moved_bytes=tokens * (self.groups + 1) * row_bytes
            )  # a row of each group read, the sum written
        rotation = self.pre_rotated * tokens * quantized_width(shape, self.quantized) ** 2
        if self.quantized == "keys_values":
            return (
                SegmentCost(rotation)
                if rotation
                else SegmentCost(moved_bytes=(self.num_quantizers + 1) * tokens * row_bytes)
            )  # each level's read, the sum written
        return SegmentCost(rotation + shape.key_value_macs(tokens))

    def attend(self, chunk: int) -> SegmentCost:
        """Own rows' attention to a received chunk."""
        rows = self.split.rows - self.split.copies  # anchor tokens see nothing but each other
        return SegmentCost(self.split.shape.attend_macs(rows, self._keys(self.split.received_tokens(chunk))))

    def finish(self, rows: int) -> SegmentCost:
        """Output projection and MLP of so many rows."""
        return SegmentCost(self.split.shape.finish_macs(rows))

    def head(self) -> SegmentCost:
        """The answer: on every rank where class copies are averaged, else on the last one."""
        answers = not self.split.shape.causal or self.split.rank == self.split.world - 1
        return SegmentCost(self.split.shape.head_macs() if answers else 0)

    def embed(self) -> SegmentCost:
        """Own tokens' embeddings."""
        return SegmentCost(self.split.shape.embed_macs(self.split.shares[self.split.rank]))

    def total(self) -> SegmentCost:
        """All segments of a forward pass."""
        chunks = range(self.split.chunks)
        received = [part(chunk) for chunk in chunks for part in (self.expand, self.attend)]
        layer = [self.local(), *map(self.encode, chunks), *received, self.finish(self.split.rows)]
        layers = self.split.shape.layers
        macs = layers * sum(slot.macs for slot in layer) + self.embed().macs + self.head().macs
        return SegmentCost(macs, layers * sum(slot.moved_bytes for slot in layer))

    def message_bytes(self, chunk: int) -> list[int]:
        """Bytes of each rank's packed indices of a chunk."""
        bits = index_bits(self.codebook_size)
        tokens = [self.split.sent_tokens(rank)[chunk] for rank in range(self.split.world)]
        return [packed_bytes(count * self.num_quantizers * self.groups, bits) for count in tokens]

    def class_bits(self) -> int:
        """Bits received to average the class copies: the others' of the own share of D, then the others' sums."""
        shape, own = self.split.shape, even_shares(self.split.shape.hidden, self.split.world)[self.split.rank]
        return shape.class_tokens * FLOAT_BITS * ((self.split.world - 2) * own + shape.hidden)

    def received_bits(self) -> int:
        """Of a forward pass: everybody's indices, each message in whole bytes, and the class copies' average."""
        if self.split.world == 1:
            return 0
        messages = [self.message_bytes(chunk) for chunk in range(self.split.chunks)]
        layer_bytes = sum(sum(sizes) - sizes[self.split.rank] for sizes in messages)
        return 8 * self.split.shape.layers * layer_bytes + self.class_bits()

    def _keys(self, tokens: int) -> int:
        """Keys that stand for so many received tokens; of codewords at most, as which of them occur depends on data."""
        return min(tokens, self.codebook_size) if self.optimizations.dedup else tokens
