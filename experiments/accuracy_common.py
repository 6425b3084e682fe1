"""What the quality experiments share: variants, stages, trained models in a cache, and rows with intervals.

Every variant is compared with the uncompressed model on the same examples, so that a change has an interval of its own.
Trained models are kept in the cache under a hash of all that they depend on, so that experiments share them and a run
that was ended goes on in the middle of a training. What is reported is the test part, which no decision has seen.
"""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, TypeVar, cast

from experiments.measurement.manifest import Manifest, print_completed
from experiments.measurement.vit_inputs import CACHE
from testbed.astra.opq import PreRotation
from testbed.astra.training.ema_quantizer import Gradient, VqSettings
from testbed.astra.training.evaluation import Examples
from testbed.astra.training.objective import Objective
from testbed.astra.training.settings import TrainingSettings
from testbed.astra.training.train import train
from testbed.astra.training.vit import Student
from testbed.config.schema import DEVICES, QualityConfig, Training
from testbed.errors import ConfigError, TestbedError
from testbed.progress import console
from testbed.results.provenance import short_hash
from testbed.results.run_folder import RunFolder
from testbed.results.schema import ACCURACY

UNCOMPRESSED, KMEANS, TRAINED = "uncompressed", "k-means", "trained"
DISTILL = Objective(labels=0.0, logits=1.0, states=1.0)
FLOAT_BITS = 32
# Keys of the configuration where they are not named as the variant's field.
AXES = {"codebook_size": "codebook_sizes", "noise": "noises", "commitment": "commitments", "gradient": "gradients"}
AXES |= {"objective": "objectives", "pre_rotation": "pre_rotations", "seed": "seeds"}
# What k-means does not depend on.
OF_TRAINING = frozenset({"noise", "commitment", "gradient", "objective", "trained_on"})
BLANK = {
    "groups": 0,
    "codebook_size": 0,
    "num_quantizers": 0,
    "quantized": "",
    "anchor_tokens": 0,
    "int8_tokens": 0,
    "noise": 0.0,
}
BLANK |= {"pre_rotation": "", "commitment": 0.0, "gradient": "", "class_tokens": "", "objective": "", "trained_on": ""}


@dataclass(frozen=True)
class Variant:
    """One way to compress and to adapt, with one seed; each kind of model has fields of its own besides."""

    groups: int
    codebook_size: int
    num_quantizers: int
    pre_rotation: PreRotation
    int8_tokens: int
    noise: float
    commitment: float
    gradient: str
    objective: str
    trained_on: str
    seed: int

    @property
    def label(self) -> str:
        """For people."""
        return ", ".join(f"{key}={value}" for key, value in asdict(self).items())

    @property
    def vq(self) -> VqSettings:
        """Of the codebooks."""
        return VqSettings(noise=self.noise, num_quantizers=self.num_quantizers, gradient=cast(Gradient, self.gradient))

    def settings(self, training: Training) -> TrainingSettings:
        """Of the adaptation."""
        found = re.fullmatch(DEVICES, self.trained_on)
        assert found is not None  # the schema's rule
        first, last = found.groups()
        weights = DISTILL if self.objective == "distill" else Objective()
        return TrainingSettings(
            **asdict(training),
            seed=self.seed,
            devices=tuple(range(int(first), int(last or first) + 1)),
            random_cuts=last is not None,
            objective=Objective(**{**asdict(weights), "commitment": self.commitment}),
        )


V = TypeVar("V", bound=Variant)


@dataclass(frozen=True)
class Subject:
    """What all rows of a run say alike. tokens: of one example. hidden: width of the embeddings."""

    model: str
    data: str
    metric: str
    tokens: int
    hidden: int


@dataclass(frozen=True)
class Measured:
    """A quality, and its change against the original on the same examples, with 95% intervals.

    unit, change_unit: for people, as ``"% right"`` and ``" points"``.
    """

    examples: int
    value: float
    value_low: float
    value_high: float
    change: float
    change_low: float
    change_high: float
    unit: str
    change_unit: str

    @property
    def columns(self) -> dict[str, Any]:
        """As rows have them."""
        return {key: value for key, value in asdict(self).items() if not key.endswith("unit")}

    @property
    def text(self) -> str:
        """For people."""
        change = f"{self.change:+.2f} [{self.change_low:+.2f}, {self.change_high:+.2f}]{self.change_unit}"
        return f"{self.value:.2f}{self.unit}, {change}"


class AccuracyBench(ABC, Generic[V]):
    """A model under test: knows which rows a variant has, and how to get them."""

    def __init__(self, config: QualityConfig, folder: RunFolder, subject: Subject, corpora: Sequence[str] = ("",)):
        """corpora: what the model is judged on; "" where that is the test part of the data.

        Raises ConfigError for numbers of devices that exceed the tokens.
        """
        self.folder, self.subject, self.corpora = folder, subject, corpora
        self.stages, self.devices, self.seed = config.stages, config.devices, config.seed
        self.completed = folder.completed(config.retry_failed)
        trained_on = [max(map(int, text.split("-"))) for text in config.trained_on]
        for key, counts in (("devices", config.devices), ("trained_on", trained_on)):
            if max(counts) > subject.tokens:
                raise ConfigError(key, max(counts), f"must be at most {subject.tokens}, the tokens of an example")

    @abstractmethod
    def measure(self, variant: V) -> None:
        """Judge one variant in all stages; rows are written as soon as they are known."""

    @abstractmethod
    def bits(self, variant: V, devices: int) -> float:
        """Bits of a token and layer on the wire."""

    def missing(self, variant: V) -> dict[tuple[Any, ...], dict[str, Any]]:
        """Key -> what is known before, of those of a variant's rows that are not completed."""
        points = [(UNCOMPRESSED, 1), *itertools.product(self.stages, self.devices)]
        rows = [self.row(stage, variant, n, corpus) for stage, n in points for corpus in self.corpora]
        return {key: row for row in rows if (key := ACCURACY.key(row)) not in self.completed}

    def row(self, stage: str, variant: V | None, devices: int, corpus: str = "") -> dict[str, Any]:
        """The columns that are known before anything is measured. What a stage does not depend on is left out of it."""
        settings, bits = BLANK | {"seed": self.seed}, float(FLOAT_BITS * self.subject.hidden)
        if variant is not None and stage != UNCOMPRESSED:
            left_out = OF_TRAINING if stage == KMEANS else ()
            settings |= {key: value for key, value in asdict(variant).items() if key not in left_out}
            bits = self.bits(variant, devices)
        return settings | {
            "model": self.subject.model,
            "data": self.subject.data,
            "corpus": corpus,
            "tokens": self.subject.tokens,
            "metric": self.subject.metric,
            "stage": stage,
            "bits_per_token": bits,
            "compression": FLOAT_BITS * self.subject.hidden / bits,
            "devices": devices,
        }

    def write(self, row: dict[str, Any], measured: Measured, cost: dict[str, Any]) -> None:
        """One row, unless it is completed. cost: of the training, as ``adapted`` returns it."""
        if ACCURACY.key(row) in self.completed:
            return
        spent = {
            "train_s": cost.get("wall_s"),
            "train_examples": cost.get("samples"),
            "train_device": cost.get("device", ""),
        }
        self.folder.append([row | measured.columns | spent | {"status": "ok", "error": ""}])
        self.completed.add(ACCURACY.key(row))
        where = f"{row['stage']}, {row['devices']} device{'s' if row['devices'] > 1 else ''}"
        console().print(f"  {where}{', ' if row['corpus'] else ''}{row['corpus']}: {measured.text}", soft_wrap=True)


def variants(kind: type[V], config: QualityConfig) -> list[V]:
    """All combinations of the configuration's axes."""
    axes = [getattr(config, AXES.get(field.name, field.name)) for field in fields(kind)]
    return [kind(*values) for values in itertools.product(*axes)]


def measure_all(bench: AccuracyBench[V], candidates: list[V], config: QualityConfig) -> int:
    """Judge what is not completed yet, row by row. Returns the number of variants that failed."""
    todo = [variant for variant in candidates if bench.missing(variant)]
    print_completed(bench.folder, config, len(set().union(*map(bench.missing, todo))))
    if not todo:
        return 0
    Manifest(bench.folder, config)
    failed = 0
    for number, variant in enumerate(todo, 1):
        if not bench.missing(variant):  # judged with an earlier one that differs in training only
            continue
        console().print(f"[{number}/{len(todo)}] {variant.label}", soft_wrap=True)
        try:
            bench.measure(variant)
        except ConfigError:
            raise
        except TestbedError as fault:
            failed += 1
            lost = [row for row in bench.missing(variant).values() if row["stage"] != UNCOMPRESSED]
            bench.folder.append([row | {"status": "failed", "error": str(fault)} for row in lost])
    return failed


def adapted(
    student: Student,
    examples: Examples,
    validation: Examples,
    settings: TrainingSettings,
    recipe: dict[str, Any],
    teacher: Student | None = None,
) -> dict[str, Any]:
    """Train in place, or take the model of this recipe from the cache; returns what it cost. Models end on the CPU."""
    cost = train(student, examples, validation, settings, CACHE / "training" / short_hash(recipe), teacher)
    for model in (student, teacher):
        if model is not None:
            model.to("cpu")
    return cost["adaptation"]
