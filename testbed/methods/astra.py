"""ASTRA: sequence parallelism whose devices exchange codeword indices only (Liu et al., arXiv 2505.19342;
docs/paper.md, section 1).

Each device owns consecutive tokens and its own copy of the class token, where the model has one. Per layer it encodes
its tokens, sends the packed indices to all others, and attends to its own rows at full precision and to the others'
quantized ones, in one softmax. The class copies stay at home until they are averaged before the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from testbed.astra.costs import Costs, Split
from testbed.astra.critical_path import critical_path_s
from testbed.astra.forward_pass import ForwardPass
from testbed.astra.lookup_tables import rows_bytes
from testbed.astra.opq import PreRotation, check_pre_rotation
from testbed.astra.optimizations import AUTO, Optimizations, candidates
from testbed.astra.quantized import Quantized, check_quantized, quantized_width
from testbed.astra.quantizer import Quantizer, check_quantizer
from testbed.astra.shard import AstraShard
from testbed.comm.group import Group
from testbed.comm.wire import Wire
from testbed.device.clock import DeviceClock
from testbed.device.spec import Device
from testbed.errors import ConfigError
from testbed.methods.base import Method
from testbed.models.decoder import Decoder
from testbed.models.shape import ModelShape
from testbed.models.vit import VisionTransformer
from testbed.output import Output

# Of a device's own time for each message that it sends and receives. The critical path has no place for it, but chunks
# that hide nothing must not look free.
HANDLED_S = 40e-6

PLAIN = {
    "quantized": "residual",
    "num_quantizers": 1,
}  # a codeword says what its tokens of the residual stream have there


class Astra(Method):
    """Settings: groups G, codebook_size K, and optimizations, as words joined by + (see Optimizations), ``paper`` or
    ``auto``.

    quantized: what of a layer's input (quantized.py). anchor_tokens: of a causal model, how many first tokens every
    device computes itself, exactly. num_quantizers: codebooks in a row, each of which quantizes what the one before
    left over.
    pre_rotation: how tokens are turned before (opq.py).
    ``auto`` is what ``resolve`` finds best for the devices and links; elsewhere it stands for ``paper``. ``attach``
    the codebooks before ``shard`` for more than one device.
    """

    name: ClassVar[str] = "astra"
    exact: ClassVar[bool] = False
    causal: ClassVar[bool] = True

    def __init__(
        self,
        groups: int = 1,
        codebook_size: int = 1024,
        optimizations: str = "paper",
        quantized: str = "residual",
        anchor_tokens: int = 0,
        num_quantizers: int = 1,
        pre_rotation: str = "none",
    ):
        self.groups, self.codebook_size, self.optimizations = groups, codebook_size, optimizations
        self.quantized: Quantized = cast(Quantized, quantized)
        self.anchor_tokens, self.num_quantizers = anchor_tokens, num_quantizers
        self.pre_rotation: PreRotation = cast(PreRotation, pre_rotation)
        self._chosen = Optimizations() if optimizations == AUTO else Optimizations.parse(optimizations)
        self._quantizer: Quantizer | None = None
        self._cache: Path | None = None

    @property
    def label(self) -> str:
        """For example ``astra G=16 K=1024 tables+overlap``, and of a decoder what is not as usual."""
        words = [f"astra G={self.groups} K={self.codebook_size} {self.optimizations}"]
        words += [self.quantized] if self.quantized != "residual" else []
        words += [f"anchor_tokens={self.anchor_tokens}"] if self.anchor_tokens else []
        words += [f"num_quantizers={self.num_quantizers}"] if self.num_quantizers > 1 else []
        return " ".join([*words, *([f"pre_rotation={self.pre_rotation}"] if self.pre_rotation != "none" else [])])

    @property
    def codebook_key(self) -> tuple[Any, ...]:
        """Also what is quantized, which tokens never are, in how many num_quantizers, and how it is turned."""
        return (
            self.groups,
            self.codebook_size,
            self.quantized,
            self.anchor_tokens,
            self.num_quantizers,
            self.pre_rotation,
        )

    def check(self, shape: ModelShape, world: int) -> None:
        """Groups must divide the hidden width, the codebook size be a power of two, each device have a token a chunk.

        Attention per codeword is for one group.
        """
        check_quantized(self.quantized)
        check_pre_rotation(self.pre_rotation)
        if self.num_quantizers < 1:
            raise ConfigError("astra.num_quantizers", self.num_quantizers, "must be 1 or more")
        check_quantizer(quantized_width(shape, self.quantized), self.groups, self.codebook_size)
        if world > shape.tokens:
            raise ConfigError("devices", world, f"astra needs 1 to {shape.tokens} devices, one content token each")
        if self._chosen.dedup and self.groups > 1:
            raise ConfigError("astra.groups", self.groups, f"must be 1 for astra.optimizations={self.optimizations}")
        if self._chosen.precomputes and (others := self._not_plain()):
            key, value = others.popitem()
            raise ConfigError(
                f"astra.{key}", value, f"must be {PLAIN[key]} for astra.optimizations={self.optimizations}"
            )
        if self.quantized != "residual" and not shape.causal:
            raise ConfigError("astra.quantized", self.quantized, "must be residual but for a causal model")
        least = min(self.shares(shape.tokens, world))
        if self.anchor_tokens and not (shape.causal and 0 < self.anchor_tokens < least):
            raise ConfigError(
                "astra.anchor_tokens", self.anchor_tokens, f"must be 0, or for a causal model less than {least}"
            )
        if self._chosen.chunks > least - self.anchor_tokens:
            raise ConfigError(
                "astra.optimizations",
                self.optimizations,
                f"must split the {least - self.anchor_tokens} tokens of a device less",
            )

    def resolve(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> dict[str, Any]:
        """The optimizations that ``auto`` stands for: the fastest by the cost model whose tables fit in memory."""
        world = len(devices)
        if self.optimizations != AUTO or world == 1:
            return {}
        table_bytes = shape.layers * rows_bytes(self.groups * self.codebook_size, 2 * shape.key_width)
        memory_bytes, least = min(device.memory_bytes for device in devices), min(self.shares(shape.tokens, world))
        best, best_s = Optimizations(overlap=True), float("inf")
        for choice in candidates(self.groups, shape.rotary):
            if choice.chunks > least - self.anchor_tokens:
                continue
            if choice.precomputes and (self._not_plain() or table_bytes > memory_bytes):
                continue
            chosen = copy(self)
            chosen._chosen = choice
            seconds = chosen.predicted_s(shape, devices, wire) + HANDLED_S * chosen.messages(shape, world)
            if seconds < best_s:
                best, best_s = choice, seconds
        return {"optimizations": str(best)}

    def attach(self, codebooks: Tensor, pre_rotation: Tensor | None = None, cache: Path | None = None) -> None:
        """Use these codebooks, float32 [layers, num_quantizers * groups, codebook_size, hidden / groups].

        pre_rotation: [layers, hidden, hidden], where the settings have one. cache: folder of their tables.

        Raises ConfigError (key ``astra.codebooks``, ``astra.pre_rotation``) where they differ from the settings.
        """
        if codebooks.shape[1:3] != (self.num_quantizers * self.groups, self.codebook_size):
            allowed = (
                f"must be [layers, {self.num_quantizers * self.groups}, {self.codebook_size}, ...], as the settings say"
            )
            raise ConfigError("astra.codebooks", list(codebooks.shape), allowed)
        if (pre_rotation is not None) != (self.pre_rotation != "none"):
            having = "no" if pre_rotation is None else "a"
            raise ConfigError("astra.pre_rotation", self.pre_rotation, f"the codebooks have {having} pre_rotation")
        self._quantizer, self._cache = Quantizer(codebooks, self.num_quantizers, pre_rotation), cache

    def shard(self, model: VisionTransformer | Decoder, rank: int, world: int) -> AstraShard:
        """The whole model, and tables of it if the optimizations have them."""
        self.check(model.shape, world)
        quantizer = None if world == 1 else self._codebooks_for(model.shape)
        split = self._split(model.shape, rank, world)
        return AstraShard.of(model, split, quantizer, self._chosen, self.quantized, self._cache)

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: AstraShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. Each rank has its own tokens. All have the logits, but of a causal model the last one."""
        return ForwardPass(shard, self._costs(shard.split), group, clock).run(inputs)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Per layer everybody's indices, each message in whole bytes; at the end the class copies' average."""
        return tuple(self._of_rank(shape, rank, world).received_bits() for rank in range(world))

    def messages(self, shape: ModelShape, world: int) -> int:
        """One from everybody for each chunk per layer; two more for the class copies' average."""
        return (shape.layers * self._chosen.chunks + 2 * shape.class_tokens) * (world - 1)

    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """As in docs/paper.md, section 3, and encoding: K·P·D per layer and quantizer. One device does what ``single`` does."""
        return self._of_rank(shape, rank, world).total().macs

    def moved_bytes(self, shape: ModelShape, rank: int, world: int) -> int:
        """Of tables and codewords that are looked up."""
        return self._of_rank(shape, rank, world).total().moved_bytes

    def predicted_s(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> float:
        """The ranks' critical path: slots and messages, side by side where the optimizations let them."""
        world = len(devices)
        return critical_path_s([self._of_rank(shape, rank, world) for rank in range(world)], devices, wire)

    def full_precision_pct(self, shape: ModelShape, world: int) -> float:
        """Pairs of tokens of one device: the squares of the shares (docs/paper.md, section 1.2)."""
        return 100 * sum(own**2 for own in self.shares(shape.tokens, world)) / shape.tokens**2

    def _not_plain(self) -> dict[str, Any]:
        """Settings by which nothing of codewords can be computed ahead."""
        return {key: value for key, plain in PLAIN.items() if (value := getattr(self, key)) != plain}

    def _of_rank(self, shape: ModelShape, rank: int, world: int) -> Costs:
        return self._costs(self._split(shape, rank, world))

    def _split(self, shape: ModelShape, rank: int, world: int) -> Split:
        anchor_tokens = self.anchor_tokens if world > 1 else 0
        return Split(shape, self.shares(shape.tokens, world), rank, self._chosen.chunks, anchor_tokens)

    def _costs(self, split: Split) -> Costs:
        own = (self._chosen, self.quantized, self.num_quantizers, self.pre_rotation != "none")
        return Costs(split, self.groups, self.codebook_size, *own)

    def _codebooks_for(self, shape: ModelShape) -> Quantizer:
        quantizer = self._quantizer
        width = quantized_width(shape, self.quantized)
        indices = self.num_quantizers * self.groups
        allowed = f"attach [{shape.layers}, {indices}, {self.codebook_size}, {width // self.groups}] first"
        if quantizer is None:
            raise ConfigError("astra.codebooks", None, allowed)
        if (quantizer.layers, quantizer.hidden) != (shape.layers, width):
            raise ConfigError("astra.codebooks", list(quantizer.codebooks_LIKd.shape), allowed)
        return quantizer
