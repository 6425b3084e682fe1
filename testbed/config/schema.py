"""The schema of conf/: a dataclass for each group and each runner. Each field carries the rule for its values.

OmegaConf checks the types (testbed/config/load.py). The rules give ranges and units. Defaults are in conf/ only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.comm.schedule import ALL_GATHERS, AUTO
from testbed.config.device_profile import DeviceProfile, ModelSizes
from testbed.config.fields import checked, count, is_positive, is_time_scale, link_rates, name_in, one_of, path, section
from testbed.datasets.corpora import CORPORA
from testbed.device.spec import Device
from testbed.network.shaping import SHAPERS
from testbed.results.schema import ACCURACY, BASELINE, FIDELITY, LATENCY, SEGMENT, RowSchema
from topologies.link_graph import LINE, LINES, SHARES, LinkGraph, is_share, link_graph

if TYPE_CHECKING:
    from testbed.models.shape import ModelShape

DEVICES = r"([1-9]\d{0,4})(?:-([1-9]\d{0,4}))?"  # values of ``trained_on``


@dataclass
class Model(ModelSizes):
    """The model of an inference. pretrained: real weights; otherwise random weights from the seed."""

    name: str = checked("a name")
    pretrained: bool = checked("true or false")

    @property
    def label(self) -> str:
        """The model's name in rows."""
        return self.name


@dataclass
class Topology:
    """The links between devices, in the notation of topologies/link_graph.py."""

    name: str = name_in("topology")
    links: list[str] = checked(LINES, lambda line: bool(LINE.fullmatch(line)))
    trunk_share: float = checked(SHARES, is_share)

    def graph(self, devices: int) -> LinkGraph:
        """The links between ``devices`` devices; none for one. ConfigError if the lines do not fit this number."""
        return link_graph(tuple(self.links), self.trunk_share, devices) if devices > 1 else LinkGraph(devices, ())


@dataclass
class NetworkChoice:
    """The network backend, which emulates the links."""

    backend: str = name_in("network")


@dataclass
class Config:
    """The keys of every experiment. Each list is an axis of the grid; it is not empty and has no duplicates."""

    rows: ClassVar[RowSchema]  # schema of the rows that the runner writes
    emulates: ClassVar[bool] = True  # whether the runner needs a network and therefore the sandbox

    experiment: str = checked("a name of letters, digits, _ and -", lambda value: bool(re.fullmatch(r"[\w-]+", value)))
    preset: str = checked("a name")
    runner: str = name_in("runner")
    devices: list[int] = checked("whole numbers >= 1, at least one", lambda value: value >= 1)
    time_scale: Any = checked("a number from 0.1 to 1000, or auto", is_time_scale)
    all_gather: str = one_of(AUTO, *ALL_GATHERS)
    repeats: int = count()
    point_budget_s: float = checked("a finite number > 0 (seconds)", is_positive)
    timeout_s: float = checked("a number from 0.1 to 86400 (seconds)", lambda value: 0.1 <= value <= 86400)
    seed: int = checked("a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32)
    results_dir: str = path("a folder", bool)
    resume: bool = checked("true or false")
    retry_failed: bool = checked("true or false")
    retry_degraded: bool = checked("true or false")
    force: bool = checked("true or false")
    topology: Topology = section()
    network: NetworkChoice = section()


@dataclass
class MethodsConfig(Config):
    """A grid of method variants, numbers of devices and numbers of tokens."""

    methods: list[str] = checked("names in conf/method/, at least one")
    tokens: list[int] = checked("whole numbers from 1 to 1000000, at least one", lambda value: 1 <= value <= 1_000_000)
    model: Model = section()
    profiles: dict[str, DeviceProfile] = section()  # those of ``named_profiles``
    settings: dict[str, dict[str, Any]] = section()  # one for each method; a list gives one variant for each item

    def named_profiles(self) -> tuple[str, list[str]]:
        """The key that names profiles of devices, and the names."""
        raise NotImplementedError

    def variants(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (method, settings) of every variant of the chosen methods."""
        for name in self.methods:
            axes = [value if isinstance(value, list) else [value] for value in self.settings[name].values()]
            for values in itertools.product(*axes):
                yield name, dict(zip(self.settings[name], values, strict=True))

    def worlds(self, method: str) -> list[int]:
        """The numbers of devices that a method runs on: one for the baseline, ``devices`` for all others."""
        return [1] if method == BASELINE else self.devices


@dataclass
class LatencyConfig(MethodsConfig):
    """A grid of method variants, numbers of devices, bandwidths and numbers of tokens."""

    rows: ClassVar[RowSchema] = LATENCY

    bandwidths: list[float] = link_rates()
    queue_kb: float = checked("a number from 4 to 1000000 (KB)", lambda value: 4 <= value <= 1e6)
    compute_mode: str = one_of("auto", "execute", "hold", "replay")
    checkpoint: str = path("a file, or nothing")
    device_mix: str = checked("names in conf/device/ joined by +, or nothing")
    partition: list[str] = one_of("equal", "speed")
    device: DeviceProfile = section()

    def named_profiles(self) -> tuple[str, list[str]]:
        return "device_mix", self.device_mix.split("+") if self.device_mix else []

    def emulated_device(self) -> Device:
        """The emulated device. With ``device_mix``, the fastest one."""
        profiles = self.profiles.values() if self.device_mix else [self.device]
        return max((profile.emulated() for profile in profiles), key=lambda device: device.macs_per_s)


@dataclass
class LanguageModel:
    """A causal decoder and its tokenizer."""

    name: str = one_of("smollm2_135m_q4", "hub_folder")
    folder: str = path("a folder with config.json, safetensors and tokenizer.json")

    @property
    def label(self) -> str:
        """The model's name in rows. For ``hub_folder`` it is the name of the folder."""
        return Path(self.folder).resolve().name if self.name == "hub_folder" else self.name

    def shape(self, tokens: int) -> ModelShape:
        """The sizes of one prefill, for cost formulas. Raises ConfigError for a folder that cannot be used."""
        from testbed.models.decoders import decoder_config  # brings torch

        return decoder_config(self.name, self.folder).shape(tokens)


@dataclass
class DecoderLatencyConfig(LatencyConfig):
    """A grid as in ``LatencyConfig`` for the prefill of a causal decoder, which yields one new token."""

    model: LanguageModel = section()  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class DeviceCheckConfig(MethodsConfig):
    """A grid of method variants whose segments are computed and predicted, on this machine."""

    rows: ClassVar[RowSchema] = SEGMENT
    emulates: ClassVar[bool] = False

    profile: str = checked("a name in conf/device/, or nothing")
    processor: str = one_of("cpu", "cuda")

    def named_profiles(self) -> tuple[str, list[str]]:
        return "profile", [self.profile] if self.profile else []


@dataclass
class FidelityConfig(Config):
    """A grid of messages over links. It measures the emulation, not a method."""

    rows: ClassVar[RowSchema] = FIDELITY

    rates: list[float] = link_rates()
    sizes_bytes: list[int] = checked(
        "multiples of 4 from 4 to 1000000000 (bytes), at least one", lambda value: 4 <= value <= 10**9 and not value % 4
    )
    patterns: list[str] = one_of("one_way", "both_ways", "all_gather", "all_reduce", "incast_all", "incast_ordered")
    shapers: list[str] = one_of(*SHAPERS)
    queues_kb: list[float] = checked("numbers from 4 to 1000000 (KB), at least one", lambda value: 4 <= value <= 1e6)


@dataclass
class Data:
    """The images on which a model is trained and evaluated."""

    name: str = one_of("fashion_mnist", "cifar100", "image_folder")
    folder: str = path("a folder")
    side: int = checked("a whole number from 1 to 4096 (pixels)", lambda value: 1 <= value <= 4096)
    train_examples: int = checked("a whole number >= 0", lambda value: value >= 0)


@dataclass
class Training:
    """The length, batch size and learning rate of a training."""

    epochs: int = count()
    batch: int = count()
    learning_rate: float = checked("a finite number > 0", is_positive)


@dataclass
class QualityConfig(Config):
    """A grid of quantizers and of ways to fine-tune a model, each evaluated on several numbers of devices."""

    rows: ClassVar[RowSchema] = ACCURACY
    emulates: ClassVar[bool] = False

    stages: list[str] = one_of("k-means", "trained")
    groups: list[int] = checked("whole numbers >= 1, at least one", lambda value: value >= 1)
    codebook_sizes: list[int] = checked("whole numbers >= 2, at least one", lambda value: value >= 2)
    num_quantizers: list[int] = checked("whole numbers >= 1, at least one", lambda value: value >= 1)
    pre_rotations: list[str] = one_of("none", "pca")
    int8_tokens: list[int] = checked("whole numbers >= 0, at least one", lambda value: value >= 0)
    noises: list[float] = checked("numbers from 0 to 10, at least one", lambda value: 0 <= value <= 10)
    commitments: list[float] = checked("numbers from 0 to 10, at least one", lambda value: 0 <= value <= 10)
    gradients: list[str] = one_of("straight_through", "rotation_trick")
    objectives: list[str] = one_of("labels", "distill")
    trained_on: list[str] = checked("N or N-M devices, as 4 or 1-8", lambda value: bool(re.fullmatch(DEVICES, value)))
    seeds: list[int] = checked("whole numbers from 0 to 4294967295", lambda value: 0 <= value < 2**32)
    training: Training = section()


@dataclass
class AccuracyConfig(QualityConfig):
    """Accuracy of Vision Transformers on images."""

    class_tokens: list[str] = one_of("distributed", "single")
    uncompressed: Training = section()
    model: Model = section()
    data: Data = section()


@dataclass
class Texts:
    """The texts on which a language model is trained and evaluated. Counts are windows of ``length`` tokens."""

    name: str = one_of("english", "wikitext103", "text_folder")
    folder: str = path("a folder")
    train: str = one_of(*(name for name, corpus in CORPORA.items() if corpus.trains))
    corpora: list[str] = one_of(*CORPORA)
    length: int = checked("a whole number from 2 to 1000000 (tokens)", lambda value: 2 <= value <= 1_000_000)
    windows: int = count()
    codebook_windows: int = count()
    train_windows: int = count()


@dataclass
class AccuracyLmConfig(QualityConfig):
    """Perplexity of causal decoders on text."""

    quantized: list[str] = one_of("residual", "normalized", "keys_values")
    anchor_tokens: list[int] = checked("whole numbers >= 0, at least one", lambda value: value >= 0)
    model: LanguageModel = section()
    data: Texts = section()


def schema_of(runner: str, model: Any) -> type[Config]:
    """The schema of a runner. model: the section ``model`` of the configuration; its name tells decoders apart."""
    schema = SCHEMAS[runner]
    (is_decoder,) = (field.metadata["test"] for field in fields(LanguageModel) if field.name == "name")
    decodes = isinstance(model, dict) and is_decoder(model.get("name"))
    return DecoderLatencyConfig if schema is LatencyConfig and decodes else schema


SCHEMAS: dict[str, type[Config]] = {
    "accuracy_vit": AccuracyConfig,
    "accuracy_lm": AccuracyLmConfig,
    "latency": LatencyConfig,
    "clock_check": LatencyConfig,
    "device_check": DeviceCheckConfig,
    "fidelity": FidelityConfig,
}
