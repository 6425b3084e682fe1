"""What compressed communication costs in quality: the original, k-means codebooks alone, and the adapted model.

Trained models are kept in the cache under a hash of all that they depend on, so that experiments share them and a run
that was ended goes on in the middle of a training. What is reported is the test part, which no decision has seen.
"""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from analysis.intervals import bootstrap_interval
from experiments.assets import CACHE
from experiments.manifest import Manifest, print_settled
from testbed.astra.codebooks import codebooks_of_examples
from testbed.astra.evaluation import correctness
from testbed.astra.objective import Objective
from testbed.astra.quantizer import check_quantizer
from testbed.astra.settings import TrainingSettings
from testbed.astra.simulation import AstraVit, ClassTokens
from testbed.astra.training import train
from testbed.astra.vq import VectorQuantizer, VqSettings
from testbed.errors import ConfigError, TestbedError
from testbed.models.weights import ModelChoice, build_model
from testbed.pictures import Splits, cifar100, fashion_mnist, picture_folder
from testbed.progress import console
from testbed.provenance import short_hash
from testbed.records import RunFolder
from testbed.rows import ACCURACY
from testbed.schema import DEVICES, AccuracyConfig, Training

ORIGINAL, KMEANS, TRAINED = "original", "k-means", "trained"
DISTILL = Objective(labels=0.0, logits=1.0, states=1.0)
FLOAT_BITS = 32
RECIPE = 1  # to be raised with every change that alters trained models, so that older ones in the cache are not used


@dataclass(frozen=True)
class Variant:
    """One way to compress and to adapt, with one seed."""

    groups: int
    codebook_size: int
    noise: float
    commitment: float
    class_tokens: str
    objective: str
    trained_on: str
    seed: int

    @property
    def label(self) -> str:
        """For people."""
        return ", ".join(f"{key}={value}" for key, value in asdict(self).items())

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


def run(config: AccuracyConfig, backend: str, folder: RunFolder) -> int:
    """Train and judge what is not settled yet, row by row. Returns the number of variants that failed."""
    bench = _Bench(config, folder)
    todo = [variant for variant in _variants(config) if bench.missing(variant)]
    print_settled(folder, config, len(set().union(*map(bench.missing, todo))))
    if not todo:
        return 0
    Manifest(folder, config)
    failed = 0
    for number, variant in enumerate(todo, 1):
        console().print(f"[{number}/{len(todo)}] {variant.label}", soft_wrap=True)
        try:
            bench.measure(variant)
        except ConfigError:
            raise
        except TestbedError as fault:
            failed += 1
            folder.append([bench.row(TRAINED, variant, n) | _failed(fault) for n in config.devices])
    return failed


def _variants(config: AccuracyConfig) -> list[Variant]:
    axes = (config.groups, config.codebook_sizes, config.noises, config.commitments, config.class_tokens)
    axes += (config.objectives, config.trained_on, config.seeds)
    return [Variant(*values) for values in itertools.product(*axes)]


def _failed(fault: TestbedError) -> dict[str, Any]:
    return {"status": "failed", "error": str(fault)}


def load_data(config: AccuracyConfig) -> Splits:
    """The configured pictures. Raises EnvironmentFault if they are not there, ConfigError if they do not fit."""
    data, patch = config.data, config.model.patch
    if data.side % patch:
        raise ConfigError("model.patch", patch, f"must divide data.side={data.side}")
    if data.name == "fashion_mnist":
        splits = fashion_mnist(data.side, *([Path(data.folder)] if data.folder else []))
    else:
        splits = {"cifar100": cifar100, "pictures": picture_folder}[data.name](Path(data.folder), data.side)
    if splits.classes != config.model.classes:
        raise ConfigError("model.classes", config.model.classes, f"{data.name} has {splits.classes}")
    if data.train_examples > len(splits.train):
        raise ConfigError("data.train_examples", data.train_examples, f"{data.name} has {len(splits.train)}")
    return splits


class _Bench:
    """The original model of each class-token kind, its test answers, and everything a variant is compared with."""

    def __init__(self, config: AccuracyConfig, folder: RunFolder):
        self.config, self.folder, self.settled = config, folder, folder.settled(config.retry_failed)
        tokens = (config.data.side // config.model.patch) ** 2
        for groups, size in itertools.product(config.groups, config.codebook_sizes):
            check_quantizer(config.model.hidden, groups, size)
        for key, counts in (("devices", config.devices), ("trained_on", [_most(text) for text in config.trained_on])):
            if max(counts) > tokens:
                raise ConfigError(key, max(counts), f"must be at most {tokens}, the tokens of a picture")
        splits = load_data(config)
        count = config.data.train_examples or len(splits.train)
        self.examples, self.validation, self.test = (
            splits.train.part(torch.arange(count)),
            splits.validation,
            splits.test,
        )
        choice = ModelChoice(**asdict(config.model))
        self.original = AstraVit(build_model(choice, tokens, config.seed))
        self.recipe = {"model": asdict(config.model), "data": asdict(config.data), "original": asdict(config.original)}
        self.recipe |= {"seed": config.seed, "recipe": RECIPE}
        self._original_right: Tensor | None = None

    def missing(self, variant: Variant) -> set[tuple[Any, ...]]:
        """Keys of a variant's rows that are not settled."""
        stages = [(ORIGINAL, 1), *((stage, n) for stage in (KMEANS, TRAINED) for n in self.config.devices)]
        return {ACCURACY.key(self.row(stage, variant, devices)) for stage, devices in stages} - self.settled

    def measure(self, variant: Variant) -> None:
        """Train and judge one variant; rows are written as soon as they are known."""
        right = self._original()
        books = codebooks_of_examples(
            self.original.model, self.examples, [variant.groups], variant.codebook_size, variant.seed
        )[variant.groups]
        quantizer = VectorQuantizer(books, VqSettings(noise=variant.noise))
        student = AstraVit(copy.deepcopy(self.original.model), quantizer, cast(ClassTokens, variant.class_tokens))
        self._judge(KMEANS, variant, student, right, {})
        settings = variant.settings(self.config.training)
        recipe = self.recipe | {"variant": asdict(variant), "training": asdict(settings)}
        teacher = self.original if settings.objective.needs_teacher else None
        cost = self._train(student, settings, recipe, teacher)
        self._judge(TRAINED, variant, student, right, cost)

    def _original(self) -> Tensor:
        """Which test examples the uncompressed model gets right, bool [examples]; trained at the first call."""
        if self._original_right is None:
            settings = TrainingSettings(**asdict(self.config.original), seed=self.config.seed)
            cost = self._train(self.original, settings, self.recipe)
            self.original.requires_grad_(False)
            self._original_right = correctness(self.original, self.test, 1)
            self._write(self.row(ORIGINAL, None, 1), self._original_right, self._original_right, cost)
        return self._original_right

    def _train(
        self, student: AstraVit, settings: TrainingSettings, recipe: dict[str, Any], teacher: AstraVit | None = None
    ) -> dict[str, Any]:
        """Train in place, or take the model of this recipe from the cache; returns what it cost."""
        where = CACHE / "training" / short_hash(recipe)
        return train(student, self.examples, self.validation, settings, where, teacher)["adaptation"]

    def _judge(self, stage: str, variant: Variant, student: AstraVit, original: Tensor, cost: dict[str, Any]) -> None:
        """Rows of a model on each number of devices."""
        for devices in self.config.devices:
            row = self.row(stage, variant, devices)
            if ACCURACY.key(row) not in self.settled:
                self._write(row, correctness(student, self.test, devices), original, cost)

    def _write(self, row: dict[str, Any], right: Tensor, original: Tensor, cost: dict[str, Any]) -> None:
        """One row: shares of right answers, and their change against the original on the same examples."""
        if ACCURACY.key(row) in self.settled:
            return
        values, changes = 100 * right.double().numpy(), 100 * (right.double() - original.double()).numpy()
        low, high = bootstrap_interval(values)
        change_low, change_high = bootstrap_interval(changes)
        measured = {
            "examples": len(values),
            "value": values.mean(),
            "value_low": low,
            "value_high": high,
            "change": changes.mean(),
            "change_low": change_low,
            "change_high": change_high,
            "train_s": cost.get("wall_s"),
            "train_examples": cost.get("samples"),
            "train_device": cost.get("device", ""),
            "status": "ok",
            "error": "",
        }
        self.folder.append([row | measured])
        self.settled.add(ACCURACY.key(row))
        where = f"{row['stage']}, {row['devices']} device{'s' if row['devices'] > 1 else ''}"
        change = f"{changes.mean():+.2f} [{change_low:+.2f}, {change_high:+.2f}] points"
        console().print(f"  {where}: {values.mean():.2f}% right, {change}")

    def row(self, stage: str, variant: Variant | None, devices: int) -> dict[str, Any]:
        """The columns that are known before anything is measured. What a stage does not depend on is left out of it."""
        config = self.config
        fields = {"groups": 0, "codebook_size": 0, "noise": 0.0, "commitment": 0.0, "class_tokens": "", "objective": ""}
        fields |= {"trained_on": "", "seed": config.seed}
        bits = FLOAT_BITS * config.model.hidden
        if variant is not None and stage != ORIGINAL:
            kept = ("groups", "codebook_size", "class_tokens", "seed") if stage == KMEANS else asdict(variant)
            fields |= {key: value for key, value in asdict(variant).items() if key in kept}
            bits = variant.groups * (variant.codebook_size - 1).bit_length()
        return fields | {
            "model": config.model.name,
            "data": config.data.name,
            "metric": "accuracy_pct",
            "stage": stage,
            "bits_per_token": bits,
            "compression": FLOAT_BITS * config.model.hidden / bits,
            "devices": devices,
        }


def _most(trained_on: str) -> int:
    return max(map(int, trained_on.split("-")))
