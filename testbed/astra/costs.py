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
from testbed.models.shape import ModelShape
from testbed.work import NO_WORK, Passes, Work, memory_pass, product, total

FLOAT_BITS = 32
# Bytes that each index moves, and kernels: shifts and masks of whole arrays (bit_packing.py).
PACK, UNPACK = Passes(48, 5), Passes(60, 8)


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
class Costs:
    """Costs of one rank's segments and messages, by formula. The codeword search takes R·K·W MACs per token."""

    split: Split
    spec: CodebookSpec
    optimizations: Optimizations

    def encode(self, chunk: int) -> Work:
        """Quantize an own chunk: nearest codewords, a rotation, and keys and values if these are quantized."""
        shape, tokens = self.split.shape, self.split.sent_tokens(self.split.rank)[chunk]
        width, indices = self.spec.width(shape), self.spec.indices
        source = shape.norm(tokens) if self.spec.quantized != "residual" else NO_WORK
        if self.spec.quantized == "keys_values":
            source += 2 * product(tokens, shape.hidden, shape.key_width)
        # One codebook at a time: the scores of all codewords, then the best of them.
        scores = product(tokens, width // self.spec.groups, self.spec.size)
        search = indices * (scores + memory_pass(tokens * self.spec.size))
        residuals = (self.spec.num_quantizers - 1) * memory_pass(4 * tokens * width, 2)
        return source + self._rotate(tokens) + search + residuals + PACK.work(tokens * indices)

    def local(self) -> Work:
        """Queries of own rows, keys and values that ``encode`` has not computed, and attention among own rows.

        The chunks of own rows are joined before.
        """
        shape, rows = self.split.shape, self.split.rows
        reused = sum(self.split.sent_tokens(self.split.rank)) if self.spec.quantized == "keys_values" else 0
        projections = shape.norm(rows) + shape.query(rows) + shape.keys_values(rows - reused)
        return memory_pass(2 * rows * shape.hidden) + projections + shape.attend(rows, rows)

    def expand(self, chunk: int) -> Work:
        """Keys and values of a received chunk, by projection or by reading rows from memory."""
        shape, tokens = self.split.shape, self.split.received_tokens(chunk)
        kv, unpack = 2 * shape.key_width, UNPACK.work(tokens * self.spec.indices)
        if self.optimizations.dedup:  # the codewords that occur are counted; a row of each is read and written
            return unpack + memory_pass(2 * self.spec.size, 4) + memory_pass(2 * self._keys(tokens) * kv, 2)
        if self.optimizations.lut:
            # A row of each group is read and their sum is written; it is scaled by the token's deviation, which is a
            # sum of float64 moments of the groups, and a bias is added.
            rows = memory_pass((self.spec.groups + 1) * tokens * kv) + 2 * memory_pass(2 * tokens * kv)
            return unpack + memory_pass(4 * tokens * self.spec.groups, 8) + rows
        stages = self.spec.num_quantizers
        decode = unpack + memory_pass((3 * stages - 1) * tokens * self.spec.width(shape), 2 * stages - 1)
        decode += self._rotate(tokens)
        if self.spec.quantized == "keys_values":
            return decode
        norm = shape.norm(tokens) if self.spec.quantized == "residual" else NO_WORK
        return decode + norm + shape.keys_values(tokens)

    def attend(self, chunk: int) -> Work:
        """Attention of own rows to a received chunk."""
        rows = self.split.rows - self.split.copies  # copies of anchor tokens see only each other
        return self.split.shape.attend(rows, self._keys(self.split.received_tokens(chunk)))

    def mix(self) -> Work:
        """Merge the attention to own rows with that to each received chunk."""
        parts = 1 + (self.split.chunks if self.split.sources else 0)
        return self.split.shape.merge(self.split.rows, parts)

    def finish(self, rows: int) -> Work:
        """Output projection and MLP of ``rows`` own rows."""
        return self.split.shape.finish(rows)

    def final_norm(self) -> Work:
        """The norm after the last layer: of the class copy first, then of the other rows."""
        copies = self.split.shape.class_tokens
        return self.split.shape.norm(copies) + self.split.shape.norm(self.split.rows - copies)

    def head(self) -> Work:
        """The head: on every rank of a ViT, which all have the averaged class copy; else on the last rank."""
        has_head = not self.split.shape.causal or self.split.rank == self.split.world - 1
        return self.split.shape.head() if has_head else NO_WORK

    def embed(self) -> Work:
        """Embeddings of own tokens."""
        return self.split.shape.embed(self.split.shares[self.split.rank])

    def total(self) -> Work:
        """All segments of a forward pass."""
        split, layers = self.split, self.split.shape.layers
        chunks = range(split.chunks)
        encoded = total(self.encode(chunk) for chunk in chunks) if split.world > 1 else NO_WORK
        received = [cost(chunk) for chunk in chunks for cost in (self.expand, self.attend)] if split.sources else []
        finished = total(self.finish(end - first) for first, end in split.chunk_rows)
        layer = total([encoded, self.local(), *received, self.mix()])
        copies = split.shape.class_tokens
        last = self.finish(copies) + self.finish(split.rows - copies) + self.final_norm()
        return self.embed() + layers * layer + (layers - 1) * finished + last + self.head()

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

    def _rotate(self, tokens: int) -> Work:
        """The rotation of ``tokens`` tokens, a W x W matrix."""
        width = self.spec.width(self.split.shape)
        return NO_WORK if self.spec.pre_rotation == "none" else product(tokens, width, width)

    def _keys(self, tokens: int) -> int:
        """Keys that stand for received tokens. With ``dedup`` an upper bound: which codewords occur depends on data."""
        return min(tokens, self.spec.size) if self.optimizations.dedup else tokens
