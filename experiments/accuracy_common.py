"""What the accuracy experiments share: variants, stages, trained models in a cache, and result rows with intervals.

Every variant is compared with the uncompressed baseline on the same examples, so that the change has its own interval.
Trained models are cached under a hash of everything that they depend on. Experiments therefore share them, and an
interrupted run resumes in the middle of a training. Results are of the test part, which no decision depends on.
"""

from __future__ import annotations

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, TypeVar, cast

from experiments.measurement.manifest import Manifest, print_completed
from experiments.measurement.model_inputs import CACHE
from testbed.astra.codebook_spec import CodebookSpec
from testbed.astra.int8_tokens import int8_bits
from testbed.astra.opq import PreRotation
from testbed.astra.training.ema_quantizer import Gradient, VqSettings
from testbed.astra.training.evaluation import Examples
from testbed.astra.training.objective import Objective
from testbed.astra.training.settings import TrainingSettings
from testbed.astra.training.train import Arithmetic, train
from testbed.astra.training.vit import Student
from testbed.comm.group import even_shares
from testbed.config.schema import DEVICES, QualityConfig, Training
from testbed.errors import ConfigError, EnvironmentFault, TestbedError
from testbed.models.shape import ModelShape
from testbed.progress import console
from testbed.results.provenance import short_hash
from testbed.results.run_folder import RunFolder
from testbed.results.schema import ACCURACY

UNCOMPRESSED, KMEANS, TRAINED = "uncompressed", "k-means", "trained"
DISTILL = Objective(labels=0.0, logits=1.0, states=1.0)
FLOAT_BITS = 32
OF_ALL = (ConfigError, EnvironmentFault)  # faults that every variant would meet, so they end the run
# keys of the configuration that are not named as the variant's field
AXES = {"codebook_size": "codebook_sizes", "noise": "noises", "commitment": "commitments", "gradient": "gradients"}
AXES |= {"objective": "objectives", "pre_rotation": "pre_rotations", "seed": "seeds"}
# fields on which k-means codebooks do not depend
TRAINING_FIELDS = frozenset({"noise", "commitment", "gradient", "objective", "trained_on"})
# a variant's columns in rows to which they do not apply
BLANK = {"groups": 0, "codebook_size": 0, "num_quantizers": 0, "quantized": "", "anchor_tokens": 0, "int8_tokens": 0}
BLANK |= {"noise": 0.0, "pre_rotation": "", "commitment": 0.0, "gradient": "", "class_tokens": "", "objective": ""}
BLANK |= {"trained_on": ""}


@dataclass(frozen=True)
class Variant:
    """One way to compress and to fine-tune, with one seed. Each kind of model adds fields of its own."""

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
        """All settings, for progress messages."""
        return ", ".join(f"{key}={value}" for key, value in asdict(self).items())

    @property
    def codebook_spec(self) -> CodebookSpec:
        """The codebooks that it needs."""
        return CodebookSpec(self.groups, self.codebook_size, self.num_quantizers, self.pre_rotation)

    @property
    def vq(self) -> VqSettings:
        """How its codebooks are trained."""
        return VqSettings(noise=self.noise, num_quantizers=self.num_quantizers, gradient=cast(Gradient, self.gradient))

    def settings(self, training: Training) -> TrainingSettings:
        """The settings of its fine-tuning."""
        found = re.fullmatch(DEVICES, self.trained_on)
        assert found is not None  # the schema has checked it
        first, last = found.groups()
        weights = DISTILL if self.objective == "distill" else Objective()
        return TrainingSettings(
            **asdict(training),
            seed=self.seed,
            devices=tuple(range(int(first), int(last or first) + 1)),
            random_cuts=last is not None,
            objective=Objective(**{**asdict(weights), "commitment": self.commitment}),
        )


def check_codebooks(variant: Variant, shape: ModelShape) -> None:
    """Raise ConfigError, with the experiment's key, for codebooks that do not fit the model."""
    try:
        variant.codebook_spec.check(shape)
    except ConfigError as error:
        key = error.key.removeprefix("astra.")
        raise ConfigError(AXES.get(key, key), error.value, error.allowed) from None


V = TypeVar("V", bound=Variant)


@dataclass(frozen=True)
class Subject:
    """What all rows of a run have in common. shape: of the model and one example."""

    model: str
    data: str
    metric: str
    shape: ModelShape


@dataclass(frozen=True)
class Measured:
    """A quality and its change against the uncompressed baseline on the same examples, with 95% intervals.

    Ends of intervals are NaN if they are not known, as with one example. unit, change_unit: for progress messages, such
    as ``"% correct"`` and ``" points"``.
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
        """The columns of a row. An end of an interval that is not known is missing."""
        found = {key: value for key, value in asdict(self).items() if not key.endswith("unit")}
        unknown = {key for key, value in found.items() if key.endswith(("_low", "_high")) and math.isnan(value)}
        return found | dict.fromkeys(unknown)

    @property
    def text(self) -> str:
        """For progress messages."""
        change = f"{self.change:+.2f} [{self.change_low:+.2f}, {self.change_high:+.2f}]{self.change_unit}"
        return f"{self.value:.2f}{self.unit}, {change}"


class AccuracyBench(ABC, Generic[V]):
    """A model under test, with the rows that each variant has and how they are measured."""

    def __init__(self, config: QualityConfig, folder: RunFolder, subject: Subject, corpora: Sequence[str] = ("",)):
        """corpora: texts on which the model is evaluated; "" for the test part of the data.

        Raises ConfigError for numbers of devices that exceed the tokens.
        """
        self.folder, self.subject, self.corpora = folder, subject, corpora
        self.stages, self.devices, self.seed = config.stages, config.devices, config.seed
        self.completed = folder.completed(config.retry_failed)
        self.failures = 0  # how often rows failed
        for key, values in (("devices", config.devices), ("trained_on", config.trained_on)):
            for value in values:
                if max(map(int, str(value).split("-"))) > subject.shape.tokens:
                    raise ConfigError(key, value, f"must be at most {subject.shape.tokens}, the tokens of an example")

    @abstractmethod
    def inputs(self) -> str:
        """Read and check all data. Returns a hash of its content, and of weights that are not trained here."""

    @abstractmethod
    def prepare(self) -> None:
        """Evaluate the uncompressed baseline, with which every variant is compared.

        Called after ``inputs``, if there is anything to measure. A fault in it ends the run.
        """

    @abstractmethod
    def measure(self, variant: V) -> None:
        """Evaluate one variant in all stages; each row is written as soon as it is measured."""

    def bits(self, variant: V, devices: int) -> float:
        """Bits per token and layer on the wire."""
        spec, shape = variant.codebook_spec, self.subject.shape
        codes = spec.bits_per_token(shape.tokens)
        return codes + int8_bits(variant.int8_tokens, spec.width(shape), even_shares(shape.tokens, devices))

    def missing(self, variant: V) -> dict[tuple[Any, ...], dict[str, Any]]:
        """The variant's rows that are not completed, by key, with the columns that are known before measurement."""
        points = [(UNCOMPRESSED, 1), *itertools.product(self.stages, self.devices)]
        rows = [self.row(stage, variant, n, corpus) for stage, n in points for corpus in self.corpora]
        return {key: row for row in rows if (key := ACCURACY.key(row)) not in self.completed}

    def row(self, stage: str, variant: V | None, devices: int, corpus: str = "") -> dict[str, Any]:
        """The columns that are known before measurement. Settings on which the stage does not depend are blank."""
        uncompressed_bits = float(FLOAT_BITS * self.subject.shape.hidden)
        settings, bits = BLANK | {"seed": self.seed}, uncompressed_bits
        if variant is not None and stage != UNCOMPRESSED:
            omitted = TRAINING_FIELDS if stage == KMEANS else ()
            settings |= {key: value for key, value in asdict(variant).items() if key not in omitted}
            bits = self.bits(variant, devices)
        return settings | {
            "model": self.subject.model,
            "data": self.subject.data,
            "corpus": corpus,
            "tokens": self.subject.shape.tokens,
            "metric": self.subject.metric,
            "stage": stage,
            "bits_per_token": bits,
            "compression": uncompressed_bits / bits,
            "devices": devices,
        }

    def write(self, row: dict[str, Any], measure: Callable[[], Measured], cost: dict[str, Any]) -> None:
        """Measure and write one row, unless it is completed. cost: of the training, as ``fine_tune`` returns it.

        A result that is not a finite number is a failed row. That of the uncompressed baseline raises TestbedError.
        """
        if ACCURACY.key(row) in self.completed:
            return
        spent = {"train_s": cost.get("wall_s"), "train_examples": cost.get("samples")}
        spent["train_device"] = cost.get("device", "")
        where = f"{row['stage']}, {row['devices']} device{'s' if row['devices'] > 1 else ''}"
        where += f", {row['corpus']}" if row["corpus"] else ""
        try:
            measured = measure()
            finished = row | measured.columns | spent | {"status": "ok", "error": ""}
            ACCURACY.check(finished)
        except TestbedError as fault:
            if row["stage"] == UNCOMPRESSED or isinstance(fault, OF_ALL):
                raise
            self.fail([row], fault)
            return
        self.folder.append([finished])
        self.completed.add(ACCURACY.key(row))
        console().print(f"  {where}: {measured.text}", soft_wrap=True)

    def fail(self, rows: list[dict[str, Any]], fault: TestbedError) -> None:
        """Write failed rows, which this run does not try again."""
        self.folder.append([row | {"status": "failed", "error": str(fault)} for row in rows])
        self.completed |= set(map(ACCURACY.key, rows))
        self.failures += 1
        console().print(f"  failed: {fault}", soft_wrap=True)


def variants(kind: type[V], config: QualityConfig) -> list[V]:
    """All combinations of the configuration's axes."""
    axes = [getattr(config, AXES.get(field.name, field.name)) for field in fields(kind)]
    return [kind(*values) for values in itertools.product(*axes)]


def measure_all(bench: AccuracyBench[V], candidates: list[V], config: QualityConfig) -> int:
    """Evaluate what is not completed, row by row. Returns the number of variants of which a row failed."""
    inputs = bench.inputs()
    todo = [variant for variant in candidates if bench.missing(variant)]
    print_completed(bench.folder, config, len(set().union(*map(bench.missing, todo))))
    if not todo:
        return 0
    Manifest(bench.folder, config, {"inputs": inputs})
    bench.prepare()
    failed = 0
    for number, variant in enumerate(todo, 1):
        if not bench.missing(variant):  # an earlier variant that differs in training only had the same rows
            continue
        console().print(f"[{number}/{len(todo)}] {variant.label}", soft_wrap=True)
        before = bench.failures
        try:
            bench.measure(variant)
        except TestbedError as fault:
            if isinstance(fault, OF_ALL):
                raise
            bench.fail(list(bench.missing(variant).values()), fault)
        failed += bench.failures > before
    return failed


def fine_tune(
    student: Student,
    examples: Examples,
    validation: Examples,
    settings: TrainingSettings,
    recipe: dict[str, Any],
    teacher: Student | None = None,
    section: str = "training",
) -> dict[str, Any]:
    """Train in place, or load the model of this recipe, device and precision from the cache; returns the cost.

    Models end on the CPU. section: of the keys of ``settings`` in messages.
    """
    folder = CACHE / "training" / short_hash(recipe | {"arithmetic": asdict(Arithmetic.here())})
    manifest = train(student, examples, validation, settings, folder, teacher, section=section)
    for model in filter(None, (student, teacher)):
        model.to("cpu")
    return manifest["cost"]
