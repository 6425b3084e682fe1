"""The schema of conf/device/: an emulated device by the time of a known inference, and what that time consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from testbed.config.fields import CURVE, checked, count, is_curve, is_positive, read_curve, section
from testbed.device.spec import Device, anchored
from testbed.errors import ConfigError
from testbed.results.schema import BASELINE
from testbed.work import Work

if TYPE_CHECKING:
    from testbed.models.shape import ModelShape


@dataclass
class ModelSizes:
    """Sizes of a Vision Transformer, without the number of tokens."""

    layers: int = count()
    hidden: int = count()
    heads: int = count()
    patch: int = count()
    classes: int = count()

    def shape(self, tokens: int) -> ModelShape:
        """The sizes of one inference of ``tokens`` content tokens. Cost formulas use them."""
        from testbed.models.vit import VitConfig  # brings torch

        return VitConfig(self.layers, self.hidden, self.heads, self.patch, tokens, self.classes).shape


@dataclass
class ReferenceModel(ModelSizes):
    """The model and number of tokens of an inference whose time on one device is known."""

    tokens: int = count()


@dataclass
class DeviceProfile:
    """The emulated device: it needs ``reference_s`` seconds for one inference of ``reference_model``.

    The other keys say what its time consists of: testbed.device.spec.Device.
    """

    name: str = checked("a name")
    reference_model: ReferenceModel = section()
    reference_s: float = checked("a finite number > 0 (seconds)", is_positive)
    memory_gb_per_s: float = checked("a finite number > 0 (GB/s)", is_positive)
    memory_gb: float = checked("a finite number > 0 (GB)", is_positive)
    launch_us: float = checked("a number from 0 to 1000000 (us)", lambda value: 0 <= value <= 1e6)
    exchange_us: float = checked("a number from 0 to 1000000 (us)", lambda value: 0 <= value <= 1e6)
    staging_gb_per_s: float = checked("a finite number > 0 (GB/s)", is_positive)
    row_efficiency: str = checked(CURVE, is_curve)
    inner_efficiency: str = checked(CURVE, is_curve)
    attention_efficiency: float = checked("a number > 0, at most 1", lambda value: 0 < value <= 1)

    @property
    def reference_work(self) -> Work:
        """What one inference of the reference model does on one device."""
        from testbed.methods import load_method

        return load_method(BASELINE).work(self.reference_model.shape(self.reference_model.tokens), 0, 1)

    def emulated(self, key: str = "device") -> Device:
        """The speed and the memory of the device. key: of the profile in the configuration.

        Raises ConfigError (key ``reference_s``) if launches and memory traffic alone take longer.
        """
        device = Device(
            memory_bytes_per_s=1e9 * self.memory_gb_per_s,
            memory_bytes=1e9 * self.memory_gb,
            launch_s=1e-6 * self.launch_us,
            exchange_s=1e-6 * self.exchange_us,
            staging_bytes_per_s=1e9 * self.staging_gb_per_s,
            row_efficiency=read_curve(self.row_efficiency),
            inner_efficiency=read_curve(self.inner_efficiency),
            attention_efficiency=self.attention_efficiency,
        )
        try:
            return anchored(device, self.reference_work, self.reference_s)
        except ValueError as floor_s:
            allowed = f"must be more than the {floor_s} s of launches and memory traffic of {self.name}"
            raise ConfigError(f"{key}.reference_s", self.reference_s, allowed) from None
