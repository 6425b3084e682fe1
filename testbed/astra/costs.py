"""How ASTRA splits a sequence over ranks, which tokens each rank sends, and what its segments and messages cost.

A rank's rows are copies first, then its share of the tokens. Copies are of the class token, or of a causal model's
anchor tokens, which every device computes itself; they are never sent. A rank sends its share to all other ranks, in
chunks. A device of a causal model attends to earlier devices only, so the last one sends nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

from testbed.astra.bit_packing import index_bits, packed_bytes
from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.optimizations import Optimizations
from testbed.comm.group import even_shares
from testbed.device.spec import Device
from testbed.models.shape import ModelShape

FLOAT_BYTES, FLOAT_BITS = 4, 32


@dataclass(frozen=True)
class Split:
    """One rank's view of a sequence that is split over devices.

    shares: tokens of each rank. chunks: into how many parts each rank cuts what it sends. anchor_tokens: how many first
    tokens every rank computes itself.
    """

    shape: ModelShape
    shares: list[int]
    rank: int
    chunks: int = 1
    anchor_tokens: int = 0

    @property
    def world(self) -> int:
        """Number of devices."""
        return len(self.shares)

    @property
    def start(self) -> int:
        """The position of this rank's first token."""
        return sum(self.shares[: self.rank])

    @property
    def copies(self) -> int:
        """Own rows that are copies of anchor tokens; device 0 owns the anchor tokens themselves."""
        return self.anchor_tokens if self.rank else 0

    @property
    def rows(self) -> int:
        """Own rows: copies of the class token or of anchor tokens, and own tokens."""
        return self.shape.class_tokens + self.copies + self.shares[self.rank]

    def sends(self, rank: int) -> bool:
        """Whether another rank attends to the tokens of ``rank``."""
        return self.world > 1 and not (self.shape.causal and rank == self.world - 1)

    @property
    def sources(self) -> list[int]:
        """The ranks whose tokens this rank attends to."""
        ranks = range(self.rank) if self.shape.causal else range(self.world)
        return [rank for rank in ranks if rank != self.rank]

    def sent_tokens(self, rank: int) -> list[int]:
        """Tokens in each chunk that ``rank`` sends."""
        return self._cut(rank) if self.sends(rank) else [0] * self.chunks

    @cached_property
    def chunk_rows(self) -> list[tuple[int, int]]:
        """(first, last + 1) of the own rows of each chunk; rows that are not sent belong to the first chunk."""
        cut = self._cut(self.rank)
        ends = itertools.accumulate(cut, initial=self.rows - sum(cut))
        return [(first if chunk else 0, last) for chunk, (first, last) in enumerate(itertools.pairwise(ends))]

    def received_tokens(self, chunk: int) -> int:
        """Tokens in a chunk of all sources together."""
        return sum(self.sent_tokens(rank)[chunk] for rank in self.sources)

    def received_positions(self, chunk: int) -> list[tuple[int, int]]:
        """(first, last + 1) position of each source's tokens in a chunk."""
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
    """What a segment costs a device: multiply-accumulates, or bytes of memory traffic where these dominate."""

    macs: int = 0
    moved_bytes: int = 0

    def seconds(self, device: Device) -> float:
        """Emulated compute time on a device."""
        return device.seconds(self.macs, self.moved_bytes)


@dataclass(frozen=True)
class Costs:
    """Costs of one rank's segments and messages, by formula. Encoding costs R·K·W MACs per token."""

    split: Split
    spec: CodebookSpec
    optimizations: Optimizations

    def encode(self, chunk: int) -> SegmentCost:
        """Quantize an own chunk: nearest codewords, a rotation, and keys and values if these are quantized."""
        shape, tokens = self.split.shape, self.split.sent_tokens(self.split.rank)[chunk]
        project = shape.key_value_macs(tokens) if self.spec.quantized == "keys_values" else 0
        search = tokens * self.spec.width(shape) * self.spec.num_quantizers * self.spec.size
        return SegmentCost(project + search + self._rotate_macs(tokens))

    def local(self) -> SegmentCost:
        """Queries of own rows, keys and values that ``encode`` has not computed, and attention among own rows."""
        shape, rows = self.split.shape, self.split.rows
        reused = sum(self.split.sent_tokens(self.split.rank)) if self.spec.quantized == "keys_values" else 0
        return SegmentCost(shape.query_macs(rows) + shape.key_value_macs(rows - reused) + shape.attend_macs(rows, rows))

    def expand(self, chunk: int) -> SegmentCost:
        """Keys and values of a received chunk, by projection or by reading rows from memory."""
        shape, tokens = self.split.shape, self.split.received_tokens(chunk)
        row_bytes = 2 * shape.key_width * FLOAT_BYTES
        if self.optimizations.dedup:  # a row of each codeword is read and written
            return SegmentCost(moved_bytes=2 * self._keys(tokens) * row_bytes)
        if self.optimizations.lut:  # a row of each group is read, and their sum is written
            return SegmentCost(moved_bytes=(self.spec.groups + 1) * tokens * row_bytes)
        rotate_macs = self._rotate_macs(tokens)
        if self.spec.quantized != "keys_values":
            return SegmentCost(rotate_macs + shape.key_value_macs(tokens))
        if rotate_macs:
            return SegmentCost(rotate_macs)
        # a row of each stage is read, and their sum is written
        return SegmentCost(moved_bytes=(self.spec.num_quantizers + 1) * tokens * row_bytes)

    def attend(self, chunk: int) -> SegmentCost:
        """Attention of own rows to a received chunk."""
        rows = self.split.rows - self.split.copies  # copies of anchor tokens see only each other
        return SegmentCost(self.split.shape.attend_macs(rows, self._keys(self.split.received_tokens(chunk))))

    def finish(self, rows: int) -> SegmentCost:
        """Output projection and MLP of ``rows`` own rows."""
        return SegmentCost(self.split.shape.finish_macs(rows))

    def head(self) -> SegmentCost:
        """The head: on every rank of a ViT, which all have the averaged class copy; else on the last rank."""
        has_head = not self.split.shape.causal or self.split.rank == self.split.world - 1
        return SegmentCost(self.split.shape.head_macs() if has_head else 0)

    def embed(self) -> SegmentCost:
        """Embeddings of own tokens."""
        return SegmentCost(self.split.shape.embed_macs(self.split.shares[self.split.rank]))

    def total(self) -> SegmentCost:
        """All segments of a forward pass."""
        chunks = range(self.split.chunks)
        received = [cost(chunk) for chunk in chunks for cost in (self.expand, self.attend)]
        layer = [self.local(), *map(self.encode, chunks), *received, self.finish(self.split.rows)]
        layers = self.split.shape.layers
        macs = layers * sum(segment.macs for segment in layer) + self.embed().macs + self.head().macs
        return SegmentCost(macs, layers * sum(segment.moved_bytes for segment in layer))

    def message_bytes(self, chunk: int) -> list[int]:
        """Bytes of each rank's packed indices of a chunk."""
        bits = index_bits(self.spec.size)
        tokens = [self.split.sent_tokens(rank)[chunk] for rank in range(self.split.world)]
        return [packed_bytes(count * self.spec.indices, bits) for count in tokens]

    def class_bits(self) -> int:
        """Bits received to average the class copies: a reduce-scatter and an all-gather of D numbers."""
        shape, own = self.split.shape, even_shares(self.split.shape.hidden, self.split.world)[self.split.rank]
        return shape.class_tokens * FLOAT_BITS * ((self.split.world - 2) * own + shape.hidden)

    def received_bits(self) -> int:
        """Bits received in a forward pass: all other ranks' messages, and the average of the class copies."""
        if self.split.world == 1:
            return 0
        messages = [self.message_bytes(chunk) for chunk in range(self.split.chunks)]
        layer_bytes = sum(sum(sizes) - sizes[self.split.rank] for sizes in messages)
        return 8 * self.split.shape.layers * layer_bytes + self.class_bits()

    def _rotate_macs(self, tokens: int) -> int:
        """MACs of the rotation of ``tokens`` tokens, a W x W matrix."""
        return 0 if self.spec.pre_rotation == "none" else tokens * self.spec.width(self.split.shape) ** 2

    def _keys(self, tokens: int) -> int:
        """Keys that stand for received tokens. With ``dedup`` an upper bound: which codewords occur depends on data."""
        return min(tokens, self.spec.size) if self.optimizations.dedup else tokens
