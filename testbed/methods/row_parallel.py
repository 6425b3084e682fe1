"""The base of methods that split the rows of the sequence: ``sequence``, ``ring`` and ``prism``.

Each device has all weights and computes its own rows: their queries, their MLP, their output. A subclass says what
devices send, once per layer, so that queries can attend to the rows of other devices (docs/baselines.md, sections 3.5,
3.6 and 3.8). ``megatron_sp``, ``galaxy`` and ``block`` use ``RowShard`` where they split rows as well.

Shape suffixes: S sequence, P own rows, D hidden, E key width, H heads, K head width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from testbed.comm.wire import Wire
from testbed.compressed_collectives import gather_work, gathered_bits
from testbed.device.clock import DeviceClock
from testbed.errors import ConfigError
from testbed.methods.base import CompressedMethod
from testbed.models.shape import ModelShape
from testbed.models.transformer import Block
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import NO_WORK, Work, memory_pass


@dataclass(frozen=True)
class RowShard:
    """The whole model and the consecutive rows of one rank. The class token is row 0, so rank 0 has it.

    rows: how many rows each rank has.
    """

    model: VisionTransformer
    rows: list[int]
    rank: int

    @property
    def start(self) -> int:
        """The first own row."""
        return sum(self.rows[: self.rank])

    @property
    def stop(self) -> int:
        """The row after the last own one."""
        return self.start + self.rows[self.rank]

    def run_embed(self, clock: DeviceClock, inputs: Tensor) -> Tensor:
        """The segment that embeds the own rows of pixels [1, 3, height, width]; returns [P, D]."""
        return clock.run("compute", embed_work(self.model.shape, self.rows, self.rank), partial(self._embed, inputs))

    def run_head(self, clock: DeviceClock, x_PD: Tensor, messages: list[Tensor]) -> Output:
        """The last segment: the norm of own rows [P, D], and on rank 0 the head. messages: for ``Output.messages``."""
        work = head_work(self.model.shape, self.rows, self.rank)
        hidden_PD, logits = clock.run("compute", work, partial(self._finish, x_PD))
        return Output(hidden_PD, max(self.start - 1, 0), logits, messages=messages)

    def project(self, block: Block, x_PD: Tensor) -> tuple[Tensor, Tensor]:
        """(queries [1, H, P, K], keys and values side by side [P, 2 E]) of own rows."""
        h_BPD = block.norm1(x_PD[None])
        return block.attn.query(h_BPD), torch.cat([block.attn.k(h_BPD), block.attn.v(h_BPD)], dim=-1)[0]

    def _embed(self, inputs: Tensor) -> Tensor:
        return self.model.embed(inputs, self.start, self.stop)[0]

    def _finish(self, x_PD: Tensor) -> tuple[Tensor, Tensor | None]:
        """(normalized content rows, logits where the class token is)."""
        x_PD = self.model.norm(x_PD)
        return (x_PD, None) if self.start else (x_PD[1:], self.model.classify(x_PD[:1])[0])


class RowParallel(CompressedMethod):
    """Rows are split, and each rank sends the same kind of message to all others once per layer."""

    def rows(self, shape: ModelShape, world: int) -> list[int]:
        """How many rows of the sequence each rank has: equal shares, or shares by speed."""
        return self.shares(shape.sequence, world)

    def check(self, shape: ModelShape, world: int) -> None:
        """Raise ConfigError (key ``devices``) unless each device has a row."""
        check_rows(self.name, shape, world)

    def shard(self, model: VisionTransformer, rank: int, world: int) -> RowShard:
        """The whole model and the rows of each rank."""
        self.check(model.shape, world)
        return RowShard(model, self.rows(model.shape, world), rank)

    @abstractmethod
    def gathered(self, shape: ModelShape, world: int) -> tuple[list[int], int]:
        """What each rank gives all others in a layer: (how many vectors, by rank; numbers in a vector)."""

    @abstractmethod
    def layer_work(self, shape: ModelShape, rows: Sequence[int], rank: int) -> Work:
        """What one rank computes in a layer, without codecs. rows: of each rank."""

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """In each layer, the vectors of all other ranks."""
        return tuple(shape.layers * bits for bits in gathered_bits(self.codec, *self.gathered(shape, world)))

    def messages(self, shape: ModelShape, world: int) -> int:
        """One from each other rank in each layer."""
        return shape.layers * (world - 1)

    def rounds(self, shape: ModelShape, world: int, wire: Wire) -> int:
        """One gather in each layer."""
        vectors, width = self.gathered(shape, world)
        return shape.layers * wire.rounds(self.codec.encoded_bytes(max(vectors) * width), world)

    def work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """The embedding of own rows, the layers with their codecs, and on rank 0 the head."""
        rows = self.rows(shape, world)
        layers = shape.layers * (self.layer_work(shape, rows, rank) + self.codec_work(shape, rank, world))
        return embed_work(shape, rows, rank) + layers + head_work(shape, rows, rank)

    def codec_work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """What encoding and decoding costs one rank in a layer."""
        return gather_work(self.codec, *self.gathered(shape, world), rank)


def check_rows(name: str, shape: ModelShape, world: int) -> None:
    """Raise ConfigError (key ``devices``) unless each of ``world`` devices has a row. name: of the method."""
    if world > shape.sequence:
        raise ConfigError("devices", world, f"{name} needs 1 to {shape.sequence} devices, one row each")


def embed_work(shape: ModelShape, rows: Sequence[int], rank: int) -> Work:
    """What embedding the rows of one rank costs. rows: of each rank. The class token of rank 0 needs no product."""
    return shape.embed(rows[rank] - (shape.class_tokens if rank == 0 else 0), joined=rank == 0)


def project_work(shape: ModelShape, own: int) -> Work:
    """What ``RowShard.project`` costs for ``own`` rows: projections, and keys and values put side by side."""
    join = memory_pass(4 * own * shape.key_width)
    return shape.norm(own) + shape.query(own) + shape.keys_values(own) + join


def head_work(shape: ModelShape, rows: Sequence[int], rank: int) -> Work:
    """The last norm of the rows of one rank, and the head, which only rank 0 computes, as it has the class token."""
    return shape.norm(rows[rank]) + (NO_WORK if rank else shape.head())
