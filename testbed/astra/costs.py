"""Who has which tokens, who sends them to whom, and what that costs: the numbers of ASTRA without its tensors.

A rank has ``kept`` rows that are never sent (its copy of the class token, or of the anchors: first tokens that every
device of a causal model computes itself), then its share of the tokens. Those it sends to all others, in pieces.
Devices of a causal model attend to earlier devices only, so the last one sends nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

from testbed.astra.bit_packing import index_bits, packed_bytes
from testbed.astra.optimizations import Speedups
from testbed.astra.quantised import Quantised, quantised_width
from testbed.comm.group import even_shares
from testbed.device.spec import Device
from testbed.models.shape import ModelShape

FLOAT_BYTES, FLOAT_BITS = 4, 32


@dataclass(frozen=True)
class Split:
    """One rank's view of a sequence over devices, in ``pieces``; the first ``anchors`` tokens stay exact.

    shares: tokens of each rank.
    """

    shape: ModelShape
    shares: list[int]
    rank: int
    pieces: int = 1
    anchors: int = 0

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
        """Own rows that are copies of anchors; the first device has the anchors themselves among its tokens."""
        return self.anchors if self.rank else 0

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
        """Tokens of each piece that a rank sends."""
        return self._cut(rank) if self.sends(rank) else [0] * self.pieces

    @cached_property
    def piece_rows(self) -> list[tuple[int, int]]:
        """(first, last + 1) of the own rows of each piece; those that are not sent belong to the first."""
        cut = self._cut(self.rank)
        ends = itertools.accumulate(cut, initial=self.rows - sum(cut))
        return [(first if piece else 0, last) for piece, (first, last) in enumerate(itertools.pairwise(ends))]

    def received_tokens(self, piece: int) -> int:
        """Tokens of a piece of all sources."""
        return sum(self.sent_tokens(rank)[piece] for rank in self.sources)

    def received_positions(self, piece: int) -> list[tuple[int, int]]:
        """(first, last + 1) position of each source's tokens of a piece."""
        spans = []
        for rank in self.sources:
            first = sum(self.shares[:rank]) or self.anchors
            ends = [*itertools.accumulate(self.sent_tokens(rank), initial=first)]
            spans.append((ends[piece], ends[piece + 1]))
        return spans

    def _cut(self, rank: int) -> list[int]:
        return even_shares(self.shares[rank] - (0 if rank else self.anchors), self.pieces)


@dataclass(frozen=True)
class Slot:
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
    speedups: Speedups
    quantised: Quantised = "residual"
    levels: int = 1
    turned: bool = False  # before codes and after, by a matrix of W x W

    def encode(self, piece: int) -> Slot:
        """Nearest codewords of an own piece, and its keys and values, if these are what is quantised."""
        shape, tokens = self.split.shape, self.split.sent_tokens(self.split.rank)[piece]
        project = shape.key_value_macs(tokens) if self.quantised == "keys_values" else 0
        width = quantised_width(shape, self.quantised)
        return Slot(project + tokens * width * (self.levels * self.codebook_size + self.turned * width))

    def local(self) -> Slot:
        """Queries of own rows, keys and values of those that have none yet, and attention among them."""
        shape, rows = self.split.shape, self.split.rows
        encoded = sum(self.split.sent_tokens(self.split.rank)) if self.quantised == "keys_values" else 0
        return Slot(shape.query_macs(rows) + shape.key_value_macs(rows - encoded) + shape.attend_macs(rows, rows))

    def expand(self, piece: int) -> Slot:
        """Keys and values of a received piece: by projection, or by reading rows of tables."""
        shape, tokens = self.split.shape, self.split.received_tokens(piece)
        row_bytes = 2 * shape.key_width * FLOAT_BYTES
        if self.speedups.codewords:
            return Slot(moved_bytes=2 * self._keys(tokens) * row_bytes)  # read, written side by side
        if self.speedups.tables:
            return Slot(moved_bytes=tokens * (self.groups + 1) * row_bytes)  # a row of each group read, the sum written
        turn = self.turned * tokens * quantised_width(shape, self.quantised) ** 2
        if self.quantised == "keys_values":
            return (
                Slot(turn) if turn else Slot(moved_bytes=(self.levels + 1) * tokens * row_bytes)
            )  # each level's read, the sum written
        return Slot(turn + shape.key_value_macs(tokens))

    def attend(self, piece: int) -> Slot:
        """Own rows' attention to a received piece."""
        rows = self.split.rows - self.split.copies  # anchors see nothing but anchors
        return Slot(self.split.shape.attend_macs(rows, self._keys(self.split.received_tokens(piece))))

    def finish(self, rows: int) -> Slot:
        """Output projection and MLP of so many rows."""
        return Slot(self.split.shape.finish_macs(rows))

    def head(self) -> Slot:
        """The answer: on every rank where class copies are averaged, else on the last one."""
        answers = not self.split.shape.causal or self.split.rank == self.split.world - 1
        return Slot(self.split.shape.head_macs() if answers else 0)

    def embed(self) -> Slot:
        """Own tokens' embeddings."""
        return Slot(self.split.shape.embed_macs(self.split.shares[self.split.rank]))

    def total(self) -> Slot:
        """All segments of a forward pass."""
        pieces = range(self.split.pieces)
        received = [part(piece) for piece in pieces for part in (self.expand, self.attend)]
        layer = [self.local(), *map(self.encode, pieces), *received, self.finish(self.split.rows)]
        layers = self.split.shape.layers
        macs = layers * sum(slot.macs for slot in layer) + self.embed().macs + self.head().macs
        return Slot(macs, layers * sum(slot.moved_bytes for slot in layer))

    def message_bytes(self, piece: int) -> list[int]:
        """Bytes of each rank's packed indices of a piece."""
        bits = index_bits(self.codebook_size)
        tokens = [self.split.sent_tokens(rank)[piece] for rank in range(self.split.world)]
        return [packed_bytes(count * self.levels * self.groups, bits) for count in tokens]

    def class_bits(self) -> int:
        """Bits received to average the class copies: the others' of the own share of D, then the others' sums."""
        shape, own = self.split.shape, even_shares(self.split.shape.hidden, self.split.world)[self.split.rank]
        return shape.class_tokens * FLOAT_BITS * ((self.split.world - 2) * own + shape.hidden)

    def received_bits(self) -> int:
        """Of a forward pass: everybody's indices, each message in whole bytes, and the class copies' average."""
        if self.split.world == 1:
            return 0
        messages = [self.message_bytes(piece) for piece in range(self.split.pieces)]
        layer_bytes = sum(sum(sizes) - sizes[self.split.rank] for sizes in messages)
        return 8 * self.split.shape.layers * layer_bytes + self.class_bits()

    def _keys(self, tokens: int) -> int:
        """Keys that stand for so many received tokens; of codewords at most, as which of them occur depends on data."""
        return min(tokens, self.codebook_size) if self.speedups.codewords else tokens
