"""One rank's forward pass of ASTRA: the order of its segments and messages.

Shape suffixes: P own tokens, Q own rows (class or anchor copies first), D hidden, C class copies, I indices of a token;
B batch, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from testbed.astra.costs import Costs
from testbed.astra.shard import AstraShard, Encoded
from testbed.comm.group import Group, Handle
from testbed.device.clock import DeviceClock
from testbed.output import Output
from testbed.work import Work

T = TypeVar("T")


class ForwardPass:
    """One pass. Its segments run on the rank's clock, and its messages go through the rank's group."""

    def __init__(self, shard: AstraShard, costs: Costs, group: Group, clock: DeviceClock):
        self.shard, self.split, self.costs, self.group, self.clock = shard, shard.split, costs, group, clock
        self.codes: list[list[Tensor]] = [[] for _ in shard.blocks]
        self.encoded: list[Encoded] = []  # the next layer's input, by chunk
        self.messages: list[Handle | Tensor] = []

    def run(self, inputs: Tensor) -> Output:
        """The model's inputs in, what this rank holds at the end out."""
        shard, split = self.shard, self.split
        x_QD = self._segment("compute", self.costs.embed(), partial(shard.rows.embed, inputs))
        rows = [x_QD[first:end] for first, end in split.chunk_rows]
        for chunk, x_PD in enumerate(rows):
            self._send(0, chunk, x_PD)
        last = split.shape.layers - 1
        for layer in range(last):
            mixed_QD = self._attend(layer, rows)
            for chunk, (first, end) in enumerate(split.chunk_rows):
                rows[chunk] = self._finish(layer, rows[chunk], mixed_QD[first:end])
                self._send(layer + 1, chunk, rows[chunk])
        mixed_QD, x_QD = self._attend(last, rows), torch.cat(rows)
        classes = split.shape.class_tokens
        class_sum = self._sum_classes(last, x_QD[:classes], mixed_QD[:classes])
        tokens_PD = self._finish(last, x_QD[classes:], mixed_QD[classes:])[split.copies :]
        logits = self._logits(class_sum, tokens_PD)
        codes = torch.stack([torch.cat(chunks) for chunks in self.codes]) if split.world > 1 else None
        return Output(tokens_PD, split.start, logits, codes)

    def _attend(self, layer: int, rows: list[Tensor]) -> Tensor:
        """Own rows' attention [Q, D] to each other and to the received tokens, before the output projection."""
        shard, costs = self.shard, self.costs
        local = partial(shard.local, layer, rows, self.encoded)
        q_BHQK, part = self._segment("compute", costs.local(), local)
        parts, messages = [part], self.messages
        self.encoded, self.messages = [], []
        for chunk, message in enumerate(messages):
            received = _arrived(message).split(costs.message_bytes(chunk))
            if self.split.sources:
                keys = self._segment("decode", costs.expand(chunk), partial(shard.keys, layer, chunk, received))
                parts.append(
                    self._segment("compute", costs.attend(chunk), partial(keys.attend, q_BHQK, self.split.copies))
                )
        return self._segment("compute", costs.mix(), partial(shard.mix, parts))

    def _finish(self, layer: int, x_QD: Tensor, mixed_QD: Tensor) -> Tensor:
        work = self.costs.finish(len(x_QD))
        if layer + 1 == self.split.shape.layers:
            work += self.split.shape.norm(len(x_QD))
        return self._segment("compute", work, partial(self.shard.finish, layer, x_QD, mixed_QD))

    def _send(self, layer: int, chunk: int, x_QD: Tensor) -> None:
        """Quantize a chunk's tokens and send their indices to all other ranks."""
        if self.split.world == 1:
            return
        encode = partial(self.shard.encode, layer, chunk, x_QD)
        encoded = self._segment("encode", self.costs.encode(chunk), encode)
        self.encoded.append(encoded)
        self.codes[layer].append(encoded.codes_PI)
        gather = self.group.all_gather_async if self.costs.optimizations.overlap else self.group.all_gather
        self.messages.append(gather(encoded.message, self.costs.message_bytes(chunk)))

    def _sum_classes(self, last: int, x_CD: Tensor, mixed_CD: Tensor) -> Handle | Tensor | None:
        """Finish the class copy before the other rows and start the sum over ranks; None without a class token."""
        if not self.split.shape.class_tokens:
            return None
        class_D = self._finish(last, x_CD, mixed_CD)[0]
        if self.split.world == 1:
            return class_D
        handle = self.group.share_sum_async(class_D)
        if not self.costs.optimizations.overlap:
            handle.wait()
        return handle

    def _logits(self, class_sum: Handle | Tensor | None, tokens_PD: Tensor) -> Tensor | None:
        """The model's output, on every rank of a ViT and on the last rank of a causal model."""
        if class_sum is not None:
            x_D = _arrived(class_sum) / self.split.world
        elif self.split.rank == self.split.world - 1:
            x_D = tokens_PD[-1]
        else:
            return None
        return self._segment("compute", self.costs.head(), partial(self.shard.rows.logits, x_D))

    def _segment(self, kind: str, work: Work, segment: Callable[[], T]) -> T:
        return self.clock.run(kind, work, segment)


def _arrived(result: Handle | Tensor) -> Tensor:
    return result.wait() if isinstance(result, Handle) else result
