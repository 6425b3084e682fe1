"""What a parallel inference method is.

A method applies parallelism to a plain model. It computes only inside ``clock.run`` segments, and moves data only
through the group, so that time and bytes are accounted for by construction. Its formulas (bits, MACs) are checked
against the counters of every run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

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

FLOAT_BITS = 32


class Method(ABC):
    """One way to run a model on several devices. Instances hold settings only (groups, codebook size, ...).

    speeds: how fast each rank is compared with the others, where its share of the work shall be in proportion to it;
    empty for equal shares.
    """

    name: ClassVar[str]
    causal: ClassVar[bool] = False  # also runs causal decoders
    exact: bool  # equals ``single`` up to rounding; otherwise equals its one-process simulation
    codebook_size: int = 0  # 0 for methods without a codebook
    groups: int = 0
    num_quantizers: int = 1
    pre_rotation: str = "none"
    speeds: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """The name with the settings that distinguish variants, for tables and plots."""
        return self.name

    @property
    def codebook_key(self) -> tuple[Any, ...]:
        """What codebooks of a model it needs: those of two variants with the same key are the same."""
        return self.groups, self.codebook_size

    @property
    def traffic(self) -> tuple[str, ...]:
        """How its bits travel, an equal part of them in each of these ways (testbed.comm.schedule.traffic)."""
        return ("gather",)

    def shares(self, total: int, world: int) -> list[int]:
        """Each rank's of ``total`` items (rows, heads, layers): as even as whole ones allow, or by ``speeds``."""
        return list(shares_by_speed(total, self.speeds)) if self.speeds else even_shares(total, world)

    def check(self, shape: ModelShape, world: int) -> None:
        """Raise ConfigError (key, value, what is allowed) if the method cannot split this shape so."""

    def resolve(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> dict[str, Any]:
        """Values of the settings that are left to the method, for these devices, by rank, and links; others stay."""
        return {}

    def attach(self, codebooks: Tensor, pre_rotation: Tensor | None = None, cache: Path | None = None) -> None:
        """Give a method with a codebook its codewords [layers, num_quantizers * groups, codebook_size, hidden /
        groups].

        pre_rotation: [layers, hidden, hidden], where tokens are turned. cache: a folder in which it may keep what it
        computes of them.
        """
        raise NotImplementedError(f"{self.name} has no codebooks")

    @abstractmethod
    def shard(self, model: Any, rank: int, world: int) -> Any:
        """What rank needs of the model: a VisionTransformer, or a Decoder where ``causal``.

        Views of the model's weights where possible, so that memory is shared.
        """

    @abstractmethod
    def forward(self, inputs: Tensor, shard: Any, group: Group, clock: DeviceClock) -> Output:
        """One inference. inputs: pixels [1, 3, height, width] or token ids [1, T], present on every device."""

    @abstractmethod
    def received_bits(self, shape: ModelShape, world: int) -> tuple[int, ...]:
        """Payload bits that each rank receives in one forward pass."""

    @abstractmethod
    def messages(self, shape: ModelShape, world: int) -> int:
        """Messages that the rank which receives most of them receives in one forward pass, empty ones too."""

    def simulate(
        self, model: VisionTransformer, inputs: Tensor, world: int, sent: Sequence[Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, Tensor]:
        """What ``world`` ranks compute, in one process: (normalized content rows [T, D], logits [classes]).

        For methods that are not exact and have no codebook. sent: each rank's ``Output.messages``; ValueError where
        they are not what the ranks should have sent.
        """
        raise NotImplementedError(f"{self.name} is exact, or has codebooks: the plain model or its simulation says it")

    @abstractmethod
    def macs(self, shape: ModelShape, rank: int, world: int) -> int:
        """Multiply-accumulates of one rank in one forward pass; equals the sum over its segments."""

    def moved_bytes(self, shape: ModelShape, rank: int, world: int) -> int:
        """Bytes of its memory that a rank reads and writes in segments that multiply little; also their sum."""
        return 0

    def wire_bits(self, shape: ModelShape, world: int) -> int:
        """Bits that pass, one after another, the end of a link that is busy longest: the most that a rank receives."""
        return max(self.received_bits(shape, world))

    def predicted_s(self, shape: ModelShape, devices: Sequence[Device], wire: Wire) -> float:
        """The cost model of a pass on these devices, by rank: the slowest one's computation, then what is sent."""
        world = len(devices)
        computation_s = max(device.seconds(self.macs(shape, rank, world)) for rank, device in enumerate(devices))
        return computation_s + wire.bulk_s(self.wire_bits(shape, world)) + self._exchanges_s(shape, world, wire)

    def _exchanges_s(self, shape: ModelShape, world: int, wire: Wire) -> float:
        """What all exchanges of a pass take beyond what is on the link."""
        return wire.exchange_s * self.messages(shape, world) / max(1, world - 1)

    def full_precision_pct(self, shape: ModelShape, world: int) -> float | None:
        """Pairs of a query and a key that attend at full precision, in percent of all; None where no pair is quantized.

        Of content tokens, class tokens apart.
        """
        return None


class CodedMethod(Method):
    """A method whose tensors travel in the number format ``codec`` (testbed.comm.codecs); exact without loss only."""

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
        """Words for settings that are not the standard ones."""
        return []
