"""What compressed communication costs Vision Transformers: the share of test images that are classified correctly.

Three stages are compared: the uncompressed baseline, which is trained here, the baseline with k-means codebooks, and
the fine-tuned model.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from experiments.accuracy_common import (
    KMEANS,
    TRAINED,
    UNCOMPRESSED,
    AccuracyBench,
    Measured,
    Subject,
    Variant,
    check_codebooks,
    fine_tune,
    measure_all,
)
from experiments.accuracy_common import variants as all_variants
from testbed.astra.training.ema_quantizer import VectorQuantizer
from testbed.astra.training.evaluation import correctness
from testbed.astra.training.settings import TrainingSettings
from testbed.astra.training.vit import AstraVit, ClassTokens
from testbed.astra.vit_codebooks import codebooks_of_examples
from testbed.config.schema import AccuracyConfig
from testbed.datasets.images import Splits, check_images, cifar100, fashion_mnist, image_folder
from testbed.errors import ConfigError
from testbed.models.weights import ModelChoice, build_model
from testbed.progress import counted
from testbed.results.intervals import mean_interval
from testbed.results.provenance import short_hash
from testbed.results.run_folder import RunFolder

RECIPE = 1  # to be raised with every change that alters trained models, so that older ones in the cache are not used


@dataclass(frozen=True)
class VitVariant(Variant):
    """A variant with the kind of class tokens."""

    class_tokens: str


def run(config: AccuracyConfig, backend: str, folder: RunFolder) -> int:
    """Train and evaluate what is not completed, row by row. Returns the number of variants that failed."""
    return measure_all(_Bench(config, folder), all_variants(VitVariant, config), config)


def load_data(config: AccuracyConfig) -> Splits:
    """The configured images, of those for training ``data.train_examples``. None is opened that is a file of its own.

    Raises EnvironmentFault if they are missing or too few, ConfigError if they do not fit the model.
    """
    data = config.data
    if data.name == "fashion_mnist":
        splits = fashion_mnist(data.side, *([Path(data.folder)] if data.folder else []))
    else:
        splits = {"cifar100": cifar100, "image_folder": image_folder}[data.name](Path(data.folder), data.side)
    if splits.classes != config.model.classes:
        raise ConfigError("model.classes", config.model.classes, f"{data.name} has {splits.classes}")
    if data.train_examples > len(splits.train):
        raise ConfigError("data.train_examples", data.train_examples, f"{data.name} has {len(splits.train)}")
    count = data.train_examples or len(splits.train)
    return replace(splits, train=splits.train.part(torch.arange(count)))


class _Bench(AccuracyBench[VitVariant]):
    """The uncompressed baseline, its results on the test part, and the data."""

    def __init__(self, config: AccuracyConfig, folder: RunFolder):
        if config.data.side % config.model.patch:
            raise ConfigError("model.patch", config.model.patch, f"must divide data.side={config.data.side}")
        tokens, choice = (config.data.side // config.model.patch) ** 2, ModelChoice(**asdict(config.model))
        shape = choice.vit_config(tokens).shape
        for variant in all_variants(VitVariant, config):
            check_codebooks(variant, shape)
        super().__init__(config, folder, Subject(config.model.name, config.data.name, "accuracy_pct", shape))
        self.config = config
        self.splits = load_data(config)
        _check(config, tokens, len(self.splits.train))
        self.uncompressed = AstraVit(build_model(choice, tokens, config.seed))
        data = {key: value for key, value in asdict(config.data).items() if key != "folder"}
        self.recipe: dict[str, Any] = {"model": asdict(config.model), "data": data, "seed": config.seed}
        self.recipe |= {"uncompressed": asdict(config.uncompressed), "recipe": RECIPE}

    def inputs(self) -> str:
        count = len(self.splits.train) + len(self.splits.validation) + len(self.splits.test)
        with counted(f"checking {count} images") as report:
            self.recipe["images"] = check_images(self.splits, report)
        return short_hash(self.recipe["images"])

    def prepare(self) -> None:
        settings = _uncompressed_settings(self.config)
        examples, validation = self.splits.train, self.splits.validation
        cost = fine_tune(self.uncompressed, examples, validation, settings, self.recipe, section="uncompressed")
        self.uncompressed.requires_grad_(False)
        self.uncompressed_correct = correct = correctness(self.uncompressed, self.splits.test, 1)
        self.write(self.row(UNCOMPRESSED, None, 1), lambda: _measured(correct, correct), cost)

    def measure(self, variant: VitVariant) -> None:
        model, examples = self.uncompressed.model, self.splits.train
        codebooks_LIKd, rotation_LDD = codebooks_of_examples(model, examples, variant.codebook_spec, variant.seed)
        quantizer = VectorQuantizer(codebooks_LIKd, variant.vq, rotation_LDD)
        class_tokens = cast(ClassTokens, variant.class_tokens)
        student = AstraVit(copy.deepcopy(model), quantizer, class_tokens, variant.int8_tokens)
        if KMEANS in self.stages:
            self._evaluate(KMEANS, variant, student, {})
        if TRAINED in self.stages:
            settings = variant.settings(self.config.training)
            recipe = self.recipe | {"variant": asdict(variant), "training": asdict(settings)}
            teacher = self.uncompressed if settings.objective.needs_teacher else None
            cost = fine_tune(student, examples, self.splits.validation, settings, recipe, teacher)
            self._evaluate(TRAINED, variant, student, cost)

    def _evaluate(self, stage: str, variant: VitVariant, student: AstraVit, cost: dict[str, Any]) -> None:
        """Write the rows of one model, for each number of devices."""
        for row in self.missing(variant).values():
            if row["stage"] == stage:

                def measure(devices: int = row["devices"]) -> Measured:
                    return _measured(correctness(student, self.splits.test, devices), self.uncompressed_correct)

                self.write(row, measure, cost)


def _uncompressed_settings(config: AccuracyConfig) -> TrainingSettings:
    return TrainingSettings(**asdict(config.uncompressed), seed=config.seed)


def _check(config: AccuracyConfig, tokens: int, examples: int) -> None:
    """Raise ConfigError for settings that do not fit the number of training examples, before the first training."""
    _uncompressed_settings(config).check(tokens, examples, "uncompressed")
    need = max(config.codebook_sizes)
    if examples * tokens < need:
        allowed = f"must be {examples * tokens} at most: {examples} training images have {tokens} tokens each"
        raise ConfigError("codebook_sizes", need, allowed)
    if TRAINED in config.stages:
        for variant in all_variants(VitVariant, config):
            variant.settings(config.training).check(tokens, examples)


def _measured(correct: Tensor, uncompressed_correct: Tensor) -> Measured:
    """The share of correct answers, and its change against the uncompressed baseline."""
    values = 100 * correct.double().numpy()
    changes = 100 * (correct.double() - uncompressed_correct.double()).numpy()
    low, high = mean_interval(values)
    change_low, change_high = mean_interval(changes)
    return Measured(
        examples=len(values),
        value=values.mean(),
        value_low=max(0.0, low),
        value_high=min(100.0, high),
        change=changes.mean(),
        change_low=change_low,
        change_high=change_high,
        unit="% correct",
        change_unit=" points",
    )
