"""Pipeline parallelism: each device has consecutive layers (GPipe, Huang et al., arXiv 1811.06965).

Definition and volumes: docs/baselines.md, section 3.9.

One request passes the stages one after another. Where every token attends to every other one, a pipeline therefore
saves memory and no latency. A causal model could be cut along the tokens, so that stages work at the same time; that
is not reproduced here, and neither are micro-batches of several requests.

Shape suffixes: S sequence, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from testbed.comm.group import Group
from testbed.comm.wire import Wire
from testbed.compressed_collectives import CompressedGroup, Relay
from testbed.device.clock import DeviceClock
from testbed.device.spec import Device
from testbed.errors import ConfigError
from testbed.methods.base import CompressedMethod
from testbed.models.shape import ModelShape
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import NO_WORK, Work


@dataclass(frozen=True)
class PipelineShard:
    """One stage: its blocks, and the model for the embedding (first stage) and for norm and head (last stage)."""

    model: VisionTransformer
    blocks: nn.ModuleList

    def start(self, inputs: Tensor) -> Tensor:
        """Embedding and this stage's layers, [S, D]."""
        return self.layers(self.model.embed(inputs)[0])

    def layers(self, x_SD: Tensor) -> Tensor:
        """This stage's layers, [S, D]."""
        x_BSD = x_SD[None]
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return x_BSD[0]


class Pipeline(CompressedMethod):
    """Each device has consecutive layers; [S, D] numbers pass from stage to stage."""

    name: ClassVar[str] = "pipeline"

    @property
    def traffic(self) -> tuple[str, ...]:
        """From stage to stage, one hop at a time."""
        return ("chain",)

    def check(self, shape: ModelShape, world: int) -> None:
        """Raise ConfigError (key ``devices``) unless each device has a layer."""
        if world > shape.layers:
            raise ConfigError("devices", world, f"pipeline needs 1 to {shape.layers} devices, one layer each at least")

    def shard(self, model: VisionTransformer, rank: int, world: int) -> PipelineShard:
        """The blocks of one stage, which are the model's own."""
        self.check(model.shape, world)
        counts = self.shares(model.shape.layers, world)
        start = sum(counts[:rank])
        return PipelineShard(model, model.blocks[start : start + counts[rank]])

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: PipelineShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. The last stage has all content tokens and the logits."""
        shape, rank, compressed = shard.model.shape, group.rank, CompressedGroup(group, clock, self.codec)
        size = (shape.sequence, shape.hidden)
        if rank == 0:
            stage = partial(shard.start, inputs)
        else:
            message = group.recv([self.codec.encoded_bytes(math.prod(size))], torch.uint8, rank - 1)
            stage = partial(shard.layers, compressed.decode(message, size))
        work = self._stage_work(shape, rank, group.world)
        if rank == group.world - 1:
            hidden_TD, logits = clock.run("compute", work, partial(_finish, shard.model, stage))
            return Output(hidden_TD, 0, logits)
        group.send(compressed.encode(clock.run("compute", work, stage)), rank + 1)
        return Output(None, 0, None, messages=compressed.messages)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Each stage but the first receives [S, D] numbers once."""
        return (0,) + (8 * self.codec.encoded_bytes(shape.sequence * shape.hidden),) * (world - 1)

    def messages(self, shape: ModelShape, world: int) -> int:
        """One hop."""
        return min(1, world - 1)

    def rounds(self, shape: ModelShape, world: int, wire: Wire) -> int:
        """All hops."""
        return world - 1

    def work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """The layers of the stage, the embedding of the first stage, norm and head of the last one, and codecs."""
        numbers = shape.sequence * shape.hidden
        work = self._stage_work(shape, rank, world)
        work += self.codec.decoding.work(numbers) if rank else NO_WORK
        return work + (self.codec.encoding.work(numbers) if rank < world - 1 else NO_WORK)

    def _stage_work(self, shape: ModelShape, rank: int, world: int) -> Work:
        work = self.shares(shape.layers, world)[rank] * shape.layer(shape.sequence)
        work = shape.embed(shape.tokens) + work if rank == 0 else work
        return work + shape.norm(shape.sequence) + shape.head() if rank == world - 1 else work

    def predicted_s(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> float:
        """The cost model: the stages and the hops between them, one after another."""
        world = len(devices)
        computation_s = sum(device.seconds(self.work(shape, rank, world)) for rank, device in enumerate(devices))
        hops_s = wire.bulk_s(sum(self.received_bits(shape, world)))
        return computation_s + hops_s + (world - 1) * wire.exchange_s

    @torch.no_grad()
    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """See Method.simulate: the plain model, with a codec between stages."""
        relay = Relay(self.codec, world, sent)
        stages = [self.shard(model, rank, world) for rank in range(world)]
        x_SD = stages[0].start(inputs)
        for rank, stage in enumerate(stages[1:]):
            x_SD = stage.layers(relay.carry(rank, x_SD))
        return model.outputs(x_SD)


def _finish(model: VisionTransformer, stage: partial[Tensor]) -> tuple[Tensor, Tensor]:
    """(normalized content rows [T, D], logits [classes]) after the last stage."""
    return model.outputs(stage())
