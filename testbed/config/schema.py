"""The schema of conf/: a dataclass for each group, and beside each field the rule for its values.

OmegaConf checks the types (testbed/config/load.py), the rules give ranges and units. Defaults are in conf/ only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.comm.schedule import ALL_GATHERS, AUTO
from testbed.config.fields import count, link_rate, named, one_of, positive, ruled, scale, section
from testbed.datasets.corpora import CORPORA
from testbed.device.spec import Device
from testbed.network.shaping import SHAPERS
from testbed.results.schema import ACCURACY, BASELINE, FIDELITY, LATENCY, RowSchema
from topologies.link_graph import LINE, LINES, SHARES, LinkGraph, is_share, link_graph

if TYPE_CHECKING:
    from testbed.models.shape import ModelShape

DEVICES = r"([1-9]\d{0,4})(?:-([1-9]\d{0,4}))?"  # of ``trained_on``


@dataclass
class ModelSizes:
    """Sizes of a Vision Transformer, without the number of tokens."""

    layers: int = count()
    hidden: int = count()
    heads: int = count()
    patch: int = count()
    classes: int = count()

    def shape(self, tokens: int) -> ModelShape:
        """The sizes of one inference of ``tokens`` content tokens, for cost formulas."""
        from testbed.models.vit import VitConfig  # brings torch

        return VitConfig(self.layers, self.hidden, self.heads, self.patch, tokens, self.classes).shape


@dataclass
class Model(ModelSizes):
    """What is inferred. pretrained: real weights, else random ones from the seed."""

    name: str = ruled("a name")
    pretrained: bool = ruled("true or false")

    @property
    def label(self) -> str:
        """In rows."""
        return self.name


@dataclass
class ReferenceModel(ModelSizes):
    """The workload whose duration on one device is known."""

    tokens: int = count()


@dataclass
class DeviceProfile:
    """The emulated device: ``reference_s`` seconds for one inference of ``reference_model`` on one device."""

    name: str = ruled("a name")
    reference_model: ReferenceModel = section()
    reference_s: float = ruled("a finite number > 0 (seconds)", positive)
    memory_gb_per_s: float = ruled("a finite number > 0 (GB/s)", positive)
    memory_gb: float = ruled("a finite number > 0 (GB)", positive)

    def emulated(self) -> Device:
        """Speed and size of the device."""
        from testbed.methods import load_method

        macs = load_method(BASELINE).macs(self.reference_model.shape(self.reference_model.tokens), 0, 1)
        return Device(macs / self.reference_s, 1e9 * self.memory_gb_per_s, 1e9 * self.memory_gb)


@dataclass
class Topology:
    """How the devices are linked; topologies/link_graph.py says how to write it."""

    name: str = named("topology")
    links: list[str] = ruled(LINES, lambda line: bool(LINE.fullmatch(line)))
    trunk_share: float = ruled(SHARES, is_share)

    def graph(self, devices: int) -> LinkGraph:
        """The links of so many devices. ConfigError where the description does not fit them."""
        return link_graph(tuple(self.links), self.trunk_share, devices)


@dataclass
class NetworkChoice:
    """What emulates the links."""

    backend: str = named("network")


@dataclass
class Config:
    """What every experiment has. All lists are axes of its grid: non-empty, without duplicates."""

    rows: ClassVar[RowSchema]  # of the rows that the runner writes
    emulates: ClassVar[bool] = True  # whether the runner needs a network, and so the sandbox

    experiment: str = ruled("a name of letters, digits, _ and -", lambda value: bool(re.fullmatch(r"[\w-]+", value)))
    preset: str = ruled("a name")
    runner: str = named("runner")
    devices: list[int] = ruled("whole numbers >= 1, at least one", lambda value: value >= 1)
    time_scale: Any = ruled("a number from 0.1 to 1000, or auto", scale)
    transport: str = one_of("tcp", "gloo")
    all_gather: str = one_of(AUTO, *ALL_GATHERS)
    repeats: int = count()
    point_budget_s: float = ruled("a finite number > 0 (seconds)", positive)
    timeout_s: float = ruled("a number from 0.1 to 86400 (seconds)", lambda value: 0.1 <= value <= 86400)
    seed: int = ruled("a whole number from 0 to 4294967295", lambda value: 0 <= value < 2**32)
    results_dir: str = ruled("a folder", bool)
    resume: bool = ruled("true or false")
    retry_failed: bool = ruled("true or false")
    retry_degraded: bool = ruled("true or false")
    force: bool = ruled("true or false")
    topology: Topology = section()
    network: NetworkChoice = section()


@dataclass
class LatencyConfig(Config):
    """A grid of methods, numbers of devices and bandwidths."""

    rows: ClassVar[RowSchema] = LATENCY

    methods: list[str] = ruled("names in conf/method/, at least one")
    bandwidths: list[float] = ruled("numbers from 0.001 to 1000000 (Mbps), at least one", link_rate)
    tokens: list[int] = ruled("whole numbers from 1 to 1000000, at least one", lambda value: 1 <= value <= 1_000_000)
    queue_kb: float = ruled("a number from 4 to 1000000 (KB)", lambda value: 4 <= value <= 1e6)
    compute_mode: str = one_of("auto", "execute", "hold", "replay")
    checkpoint: str = ruled("a file, or nothing")
    device_mix: str = ruled("names in conf/device/ joined by +, or nothing")
    partition: list[str] = one_of("equal", "speed")
    model: Model = section()
    device: DeviceProfile = section()
    profiles: dict[str, DeviceProfile] = section()  # of each name in ``device_mix``
    settings: dict[str, dict[str, Any]] = section()  # of each chosen method; a list is an axis: one variant each

    def variants(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(method, settings) of every variant of the chosen methods."""
        for name in self.methods:
            axes = [value if isinstance(value, list) else [value] for value in self.settings[name].values()]
            for values in itertools.product(*axes):
                yield name, dict(zip(self.settings[name], values, strict=True))

    def worlds(self, method: str) -> list[int]:
        """Numbers of devices that a method runs on: one for the baseline, ``devices`` for all others."""
        return [1] if method == BASELINE else self.devices

    def emulated_device(self) -> Device:
        """The emulated device; of a mix the fastest."""
        profiles = self.profiles.values() if self.device_mix else [self.device]
        return max((profile.emulated() for profile in profiles), key=lambda device: device.macs_per_s)


@dataclass
class LanguageModel:
    """A causal decoder with its tokenizer."""

    name: str = one_of("smollm2_135m_q4", "hub_folder")
    folder: str = ruled("a folder with config.json, safetensors and tokenizer.json")

    @property
    def label(self) -> str:
        """In rows: of a folder, its own name."""
        return Path(self.folder).resolve().name if self.name == "hub_folder" else self.name

    def shape(self, tokens: int) -> ModelShape:
        """The sizes of one pass over a prompt, for cost formulas. ConfigError for a folder that cannot be used."""
        from testbed.models.decoders import decoder_config  # brings torch

        return decoder_config(self.name, self.folder).shape(tokens)


@dataclass
class DecoderLatencyConfig(LatencyConfig):
    """A grid as ``LatencyConfig``, of a causal decoder's pass over a prompt (prefill), after which it has one token."""

    model: LanguageModel = section()  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class FidelityConfig(Config):
    """A grid of messages over links: what is measured is the emulation, not a method."""

    rows: ClassVar[RowSchema] = FIDELITY

    rates: list[float] = ruled("numbers from 0.001 to 1000000 (Mbps), at least one", link_rate)
    sizes_bytes: list[int] = ruled(
        "multiples of 4 from 4 to 1000000000 (bytes), at least one", lambda value: 4 <= value <= 10**9 and not value % 4
    )
    patterns: list[str] = one_of("one_way", "both_ways", "all_gather", "all_reduce", "incast_all", "incast_ordered")
    shapers: list[str] = one_of(*SHAPERS)
    queues_kb: list[float] = ruled("numbers from 4 to 1000000 (KB), at least one", lambda value: 4 <= value <= 1e6)


@dataclass
class Data:
    """What a model is trained and judged on."""

    name: str = one_of("fashion_mnist", "cifar100", "image_folder")
    folder: str = ruled("a folder")
    side: int = ruled("a whole number from 1 to 4096 (pixels)", lambda value: 1 <= value <= 4096)
    train_examples: int = ruled("a whole number >= 0", lambda value: value >= 0)


@dataclass
class Training:
    """How long and how fast a model learns."""

    epochs: int = count()
    batch: int = count()
    learning_rate: float = ruled("a finite number > 0", positive)


@dataclass
class QualityConfig(Config):
    """A grid of ways to compress and to adapt a model, each judged on several numbers of devices."""

    rows: ClassVar[RowSchema] = ACCURACY
    emulates: ClassVar[bool] = False

    stages: list[str] = one_of("k-means", "trained")
    groups: list[int] = ruled("whole numbers >= 1, at least one", lambda value: value >= 1)
    codebook_sizes: list[int] = ruled("whole numbers >= 2, at least one", lambda value: value >= 2)
    num_quantizers: list[int] = ruled("whole numbers >= 1, at least one", lambda value: value >= 1)
    pre_rotations: list[str] = one_of("none", "pca")
    int8_tokens: list[int] = ruled("whole numbers >= 0, at least one", lambda value: value >= 0)
    noises: list[float] = ruled("numbers from 0 to 10, at least one", lambda value: 0 <= value <= 10)
    commitments: list[float] = ruled("numbers from 0 to 10, at least one", lambda value: 0 <= value <= 10)
    gradients: list[str] = one_of("straight_through", "rotation_trick")
    objectives: list[str] = one_of("labels", "distill")
    trained_on: list[str] = ruled("N or N-M devices, as 4 or 1-8", lambda value: bool(re.fullmatch(DEVICES, value)))
    seeds: list[int] = ruled("whole numbers from 0 to 4294967295", lambda value: 0 <= value < 2**32)
    training: Training = section()


@dataclass
class AccuracyConfig(QualityConfig):
    """Vision Transformers on pictures."""

    class_tokens: list[str] = one_of("distributed", "single")
    uncompressed: Training = section()
    model: Model = section()
    data: Data = section()


@dataclass
class Texts:
    """What a language model is trained and judged on; all counts are of windows of ``length`` tokens."""

    name: str = one_of("english", "wikitext103", "text_folder")
    folder: str = ruled("a folder")
    train: str = one_of(*(name for name, corpus in CORPORA.items() if corpus.trains))
    corpora: list[str] = one_of(*CORPORA)
    length: int = ruled("a whole number from 2 to 1000000 (tokens)", lambda value: 2 <= value <= 1_000_000)
    windows: int = count()
    codebook_windows: int = count()
    train_windows: int = count()


@dataclass
class AccuracyLmConfig(QualityConfig):
    """Causal decoders on text."""

    quantized: list[str] = one_of("residual", "normalized", "keys_values")
    anchor_tokens: list[int] = ruled("whole numbers >= 0, at least one", lambda value: value >= 0)
    model: LanguageModel = section()
    data: Texts = section()


def schema_of(runner: str, model: Any) -> type[Config]:
    """The schema of a runner; ``model``: that section of the configuration, whose name decides between its kinds."""
    schema = SCHEMAS[runner]
    (is_decoder,) = (field.metadata["test"] for field in fields(LanguageModel) if field.name == "name")
    decodes = isinstance(model, dict) and is_decoder(model.get("name"))
    return DecoderLatencyConfig if schema is LatencyConfig and decodes else schema


SCHEMAS: dict[str, type[Config]] = {
    "accuracy_vit": AccuracyConfig,
    "accuracy_lm": AccuracyLmConfig,
    "latency": LatencyConfig,
    "clock_check": LatencyConfig,
    "fidelity": FidelityConfig,
}
