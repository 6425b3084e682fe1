"""ASTRA: sequence parallelism whose devices exchange codeword indices only (Liu et al., arXiv 2505.19342;
docs/paper.md, section 1).

Each device owns consecutive tokens and its own copy of the class token, where the model has one. In each layer it
quantizes its tokens, sends the packed indices to all other devices, and attends to its own rows at full precision and
to the others' rows quantized, in one softmax. Class copies are not sent; they are averaged before the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.costs import Costs, Split
from testbed.astra.critical_path import critical_path_s
from testbed.astra.forward_pass import ForwardPass
from testbed.astra.lookup_tables import table_bytes
from testbed.astra.opq import PreRotation
from testbed.astra.optimizations import AUTO, Optimizations, candidates
from testbed.astra.quantized import Quantized
from testbed.astra.quantizer import Quantizer
from testbed.astra.shard import AstraShard
from testbed.comm.group import Group
from testbed.comm.wire import Wire
from testbed.device.clock import DeviceClock
from testbed.device.spec import Device
from testbed.errors import ConfigError
from testbed.methods.base import CodebookMethod
from testbed.models.decoder import Decoder
from testbed.models.shape import ModelShape
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import Work

PRECOMPUTE_NEEDS = {"quantized": "residual", "num_quantizers": 1}  # settings with which lut and dedup work


class Astra(CodebookMethod):
    """Settings: those of CodebookSpec (``codebook_size`` is its ``size``), and ``optimizations``.

    optimizations: words joined by + (see Optimizations), ``paper``, or ``auto``. ``resolve`` replaces ``auto`` by the
    fastest combination for the devices and links; until then it acts as ``paper``. More than one device needs
    ``attach`` before ``shard``.
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
        """For example ``astra G=16 K=1024 lut+overlap``, and other settings that are not the defaults."""
        words = [f"astra G={self.groups} K={self.codebook_size} {self.optimizations}"]
        words += [self.quantized] if self.quantized != "residual" else []
        words += [f"anchor_tokens={self.anchor_tokens}"] if self.anchor_tokens else []
        words += [f"num_quantizers={self.num_quantizers}"] if self.num_quantizers > 1 else []
        return " ".join([*words, *([f"pre_rotation={self.pre_rotation}"] if self.pre_rotation != "none" else [])])

    @property
    def codebook_spec(self) -> CodebookSpec:
        return CodebookSpec(
            self.groups,
            self.codebook_size,
            self.num_quantizers,
            self.pre_rotation,
            self.quantized,
            self.anchor_tokens,
        )

    def check(self, shape: ModelShape, world: int) -> None:
        """Raise ConfigError for codebooks that do not fit the model, for fewer tokens than devices or than chunks, and
        for optimizations that the codebooks do not allow.
        """
        if self._chosen.dedup and self.groups > 1:
            raise ConfigError("astra.groups", self.groups, f"must be 1 for astra.optimizations={self.optimizations}")
        if self._chosen.precomputes and (conflicts := self._precompute_conflicts()):
            key, value = conflicts.popitem()
            allowed = f"must be {PRECOMPUTE_NEEDS[key]} for astra.optimizations={self.optimizations}"
            raise ConfigError(f"astra.{key}", value, allowed)
        self.codebook_spec.check(shape)
        if world > shape.tokens:
            raise ConfigError("devices", world, f"astra needs 1 to {shape.tokens} devices, one content token each")
        smallest = min(self.shares(shape.tokens, world))
        if self.anchor_tokens and self.anchor_tokens >= smallest:
            allowed = f"must be 0, or for a causal model less than {smallest}"
            raise ConfigError("astra.anchor_tokens", self.anchor_tokens, allowed)
        if self._chosen.chunks > smallest - self.anchor_tokens:
            allowed = f"must have at most {smallest - self.anchor_tokens} chunks, the tokens that a device sends"
            raise ConfigError("astra.optimizations", self.optimizations, allowed)

    def resolve(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> dict[str, Any]:
        """The optimizations for ``auto``: the fastest by the cost model whose lookup tables fit in every memory, beside
        the model's weights.
        """
        world = len(devices)
        if self.optimizations != AUTO or world == 1:
            return {}
        needed_bytes = shape.layers * table_bytes(self.groups * self.codebook_size, 2 * shape.key_width)
        tables_fit = needed_bytes <= min(device.memory_bytes for device in devices) - shape.weight_bytes
        sent_tokens = min(self.shares(shape.tokens, world)) - self.anchor_tokens
        best, best_s = Optimizations(overlap=True), float("inf")
        for candidate in candidates(self.groups, shape.rotary):
            if candidate.chunks > sent_tokens:
                continue
            if candidate.precomputes and (self._precompute_conflicts() or not tables_fit):
                continue
            variant = copy(self)
            variant._chosen = candidate
            seconds = variant.predicted_s(shape, devices, wire)
            if seconds < best_s:
                best, best_s = candidate, seconds
        return {"optimizations": str(best)}

    def attach(self, codebooks: Tensor, pre_rotation: Tensor | None = None, cache: Path | None = None) -> None:
        """See CodebookMethod.attach. cache: the folder of lookup tables.

        Raises ConfigError (key ``astra.codebooks`` or ``astra.pre_rotation``) where they differ from the settings.
        """
        indices = self.codebook_spec.indices
        if codebooks.shape[1:3] != (indices, self.codebook_size):
            allowed = f"must be [layers, {indices}, {self.codebook_size}, ...], as the settings say"
            raise ConfigError("astra.codebooks", list(codebooks.shape), allowed)
        if (pre_rotation is not None) != (self.pre_rotation != "none"):
            article = "no" if pre_rotation is None else "a"
            raise ConfigError("astra.pre_rotation", self.pre_rotation, f"the codebooks have {article} pre_rotation")
        self._quantizer, self._cache = Quantizer(codebooks, self.num_quantizers, pre_rotation), cache

    def shard(self, model: VisionTransformer | Decoder, rank: int, world: int) -> AstraShard:
        """The whole model, and its lookup tables if the optimizations use them."""
        self.check(model.shape, world)
        quantizer = None if world == 1 else self._quantizer_for(model.shape)
        split = self._split(model.shape, rank, world)
        return AstraShard.of(model, split, quantizer, self._chosen, self.quantized, self._cache)

    @torch.no_grad()
    def forward(self, inputs: Tensor, shard: AstraShard, group: Group, clock: DeviceClock) -> Output:
        """See Method.forward. A ViT's logits are on all ranks, a decoder's on the last one."""
        return ForwardPass(shard, self._costs(shard.split), group, clock).run(inputs)

    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """In each layer the indices of all other ranks, each message in whole bytes; finally the class copies' mean."""
        return tuple(self._rank_costs(shape, rank, world).received_bits() for rank in range(world))

    def messages(self, shape: ModelShape, world: int) -> int:
        """In each layer one from each other rank and chunk; two more from each for the class copies' mean."""
        return (shape.layers * self._chosen.chunks + 2 * shape.class_tokens) * (world - 1)

    def rounds(self, shape: ModelShape, world: int, wire: Wire) -> int:
        """The codes of each layer, which go to all devices at the same time, and two for the class copies' mean."""
        return (shape.layers * self._chosen.chunks + 2 * shape.class_tokens) * min(1, world - 1)

    def work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """See docs/paper.md, section 3. Encoding adds K·P·D MACs per layer and stage. One device equals ``single``."""
        return self._rank_costs(shape, rank, world).total()

    def predicted_s(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> float:
        """The critical path of the ranks' segments and messages, which overlap where the optimizations allow it."""
        world = len(devices)
        return critical_path_s([self._rank_costs(shape, rank, world) for rank in range(world)], devices, wire)

    def full_precision_pct(self, shape: ModelShape, world: int) -> float:
        """Pairs of tokens of one device: the sum of the squared shares (docs/paper.md, section 1.2)."""
        return 100 * sum(own**2 for own in self.shares(shape.tokens, world)) / shape.tokens**2

    def _precompute_conflicts(self) -> dict[str, Any]:
        """Settings with which nothing can be computed from codewords ahead of the pass, and their values."""
        return {key: value for key, need in PRECOMPUTE_NEEDS.items() if (value := getattr(self, key)) != need}

    def _rank_costs(self, shape: ModelShape, rank: int, world: int) -> Costs:
        return self._costs(self._split(shape, rank, world))

    def _split(self, shape: ModelShape, rank: int, world: int) -> Split:
        anchor_tokens = self.anchor_tokens if world > 1 else 0
        return Split(shape, self.shares(shape.tokens, world), rank, self._chosen.chunks, anchor_tokens)

    def _costs(self, split: Split) -> Costs:
        return Costs(split, self.codebook_spec, self._chosen)

    def _quantizer_for(self, shape: ModelShape) -> Quantizer:
        quantizer, spec = self._quantizer, self.codebook_spec
        allowed = f"attach {list(spec.codebook_shape(shape))} first"
        if quantizer is None:
            raise ConfigError("astra.codebooks", None, allowed)
        if (quantizer.layers, quantizer.hidden) != (shape.layers, spec.width(shape)):
            raise ConfigError("astra.codebooks", list(quantizer.codebooks_LIKd.shape), allowed)
        return quantizer
