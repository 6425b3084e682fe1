"""One device computes everything: the reference for outputs and for every speedup (docs/baselines.md, section 3.1)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from testbed.comm.group import Group
from testbed.comm.wire import Wire
from testbed.device.clock import DeviceClock
from testbed.methods.base import Method
from testbed.models.decoder import Decoder
from testbed.models.shape import ModelShape
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import NO_WORK, Work


class Single(Method):
    """Rank 0 runs the plain model. The other ranks neither compute nor communicate."""

    name: ClassVar[str] = "single"
    exact: ClassVar[bool] = True
    causal: ClassVar[bool] = True

    def shard(self, model: VisionTransformer | Decoder, rank: int, world: int) -> VisionTransformer | Decoder:
        """The whole model."""
        return model

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: VisionTransformer | Decoder, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Rank 0 has all content tokens and the logits."""
        if group.rank != 0:
            return Output(None, 0, None)
        work = self.work(shard.shape, 0, group.world)
        hidden_TD, logits = clock.run("compute", work, partial(_whole_model, shard, inputs))
        return Output(hidden_TD, 0, logits)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Nothing is sent."""
        return (0,) * world

    def messages(self, shape: ModelShape, world: int) -> int:
        """None."""
        return 0

    def rounds(self, shape: ModelShape, world: int, wire: Wire) -> int:
        """None."""
        return 0

    def work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """The whole model on rank 0: 12·S·D² + 2·S²·D MACs per layer at an MLP ratio of 4. Nothing on other ranks."""
        if rank != 0:
            return NO_WORK
        layers = shape.layers * shape.layer(shape.sequence)
        return shape.embed(shape.tokens) + layers + shape.norm(shape.sequence) + shape.head()


def _whole_model(model: VisionTransformer | Decoder, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(normalized content rows [T, D], logits [classes]; with a causal model, the logits of the next token)."""
    x_BSD = model.embed(inputs)
    for block in model.blocks:
        x_BSD = block(x_BSD)
    x_BSD = model.norm(x_BSD)
    if isinstance(model, Decoder):
        return x_BSD[0], model.logits(x_BSD[0, -1])
    return x_BSD[0, 1:], model.classify(x_BSD[:, 0])[0]
