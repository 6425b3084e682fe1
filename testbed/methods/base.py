"""The base classes of parallel inference methods.

A method applies parallelism to a plain model. It computes only inside ``clock.run`` segments and moves data only
through the group, so that all time and all bytes are counted. Every run checks its formulas (bits, work) against the
counters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from testbed.astra.codebook_spec import CodebookSpec
from testbed.comm.codecs import CODECS
from testbed.comm.group import Group, even_shares
from testbed.comm.wire import Wire
from testbed.device.clock import DeviceClock
from testbed.device.partition import shares_by_speed
from testbed.device.spec import Device
from testbed.errors import ConfigError, nearest
from testbed.models.shape import ModelShape
from testbed.models.vit import VisionTransformer
from testbed.output import Output
from testbed.work import Work

FLOAT_BITS = 32


class Method(ABC):
    """One way to run a model on several devices. Instances hold settings only.

    speeds: relative speed of each rank, where the ranks' shares of the work are proportional to it; empty for equal
    shares.
    """

    name: ClassVar[str]
    causal: ClassVar[bool] = False  # also runs causal decoders
    exact: bool  # equals ``single`` up to rounding; otherwise equals its one-process simulation
    speeds: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """The name with the settings that distinguish variants, for tables and plots."""
        return self.name

    @property
    def codebook_spec(self) -> CodebookSpec | None:
        """The codebooks that it needs; None except for a CodebookMethod."""
        return None

    @property
    def traffic(self) -> tuple[str, ...]:
        """The kinds of communication that carry its bits, in equal parts; see testbed.comm.schedule.traffic."""
        return ("gather",)

    def shares(self, total: int, world: int) -> list[int]:
        """Each rank's share of ``total`` items (rows, heads, layers): as even as possible, or by ``speeds``."""
        return list(shares_by_speed(total, self.speeds)) if self.speeds else even_shares(total, world)

    def check(self, shape: ModelShape, world: int) -> None:
        """Raise ConfigError if the method cannot split this shape over ``world`` ranks."""

    def resolve(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> dict[str, Any]:
        """Values of the settings that the method chooses itself, for these devices (by rank) and links."""
        return {}

    @abstractmethod
    def shard(self, model: Any, rank: int, world: int) -> Any:
        """What ``rank`` needs of the model: a VisionTransformer, or a Decoder where ``causal``.

        Tensors are views of the model's weights where possible, so that memory is shared.
        """

    @abstractmethod
    def forward(self, inputs: Tensor, shard: Any, group: Group, clock: DeviceClock) -> Output:
        """One inference. inputs: pixels [1, 3, height, width] or token ids [1, T], present on every device."""

    @abstractmethod
    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Payload bits that each rank receives in one forward pass."""

    @abstractmethod
    def messages(self, shape: ModelShape, world: int) -> int:
        """Messages that the rank with most of them receives in one forward pass, including empty ones."""

    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The result of ``world`` ranks, computed in one process: (normalized content rows [T, D], logits [classes]).

        For methods that are not exact and have no codebooks. sent: ``Output.messages`` of each rank; ValueError where
        they differ from what the rank should have sent.
        """
        raise NotImplementedError(f"{self.name} is verified by the plain model or by the simulation of its codebooks")

    @abstractmethod
    def work(self, shape: ModelShape, rank: int, world: int) -> Work:
        """The kernels of one rank in one forward pass: those of all its segments."""

    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """Multiply-accumulates of one rank in one forward pass."""
        return self.work(shape, rank, world).macs

    @abstractmethod
    def rounds(self, shape: ModelShape, world: int, wire: Wire) -> int:
        """Messages of a forward pass that wait for each other, one after another, and therefore add their host costs.

        wire: decides which messages go to all devices at the same time.
        """

    def wire_bits(self, shape: ModelShape, world: int) -> int:
        """Bits that pass through the busiest link end, one after another: the most that a rank receives."""
        return max(self.received_bits(shape, world))

    def predicted_s(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> float:
        """The cost model of a forward pass on these devices, by rank: the slowest computation, then communication."""
        world = len(devices)
        computation_s = max(device.seconds(self.work(shape, rank, world)) for rank, device in enumerate(devices))
        transfer_s = wire.bulk_s(self.wire_bits(shape, world))
        return computation_s + transfer_s + wire.exchange_s * self.rounds(shape, world, wire)

    def full_precision_pct(self, shape: ModelShape, world: int) -> float | None:
        """Pairs of a query and a key that attend at full precision, in percent of all pairs of content tokens.

        None where nothing is quantized.
        """
        return None


class CodebookMethod(Method):
    """A method that needs codebooks, which ``attach`` gives it before ``shard``."""

    @property
    @abstractmethod
    def codebook_spec(self) -> CodebookSpec:
        """The codebooks that it needs. Variants with equal specs use the same codebooks."""

    @abstractmethod
    def attach(self, codebooks: Tensor, pre_rotation: Tensor | None = None, cache: Path | None = None) -> None:
        """Use these codebooks, float32 [layers, num_quantizers * groups, codebook_size, width / groups].

        pre_rotation: [layers, width, width], for a spec with a rotation. cache: a folder for what the method computes
        from the codebooks. Raises ConfigError for codebooks that differ from ``codebook_spec``.
        """


class CompressedMethod(Method):
    """A method whose tensors travel in ``codec`` (testbed.comm.codecs). It is exact if the codec is lossless."""

    def __init__(self, codec: str = "fp32"):
        if codec not in CODECS:
            raise ConfigError(f"{self.name}.codec", codec, nearest(codec, CODECS))
        self.codec = CODECS[codec]
        self.exact = not self.codec.lossy

    @property
    def label(self) -> str:
        """For example ``sequence kv int8``."""
        return " ".join([self.name, *self._variant(), *([self.codec.name] if self.codec.lossy else [])])

    def _variant(self) -> list[str]:
        """Words for settings that are not the defaults."""
        return []
