"""What compressed communication costs Vision Transformers: the share of test images that are classified correctly.

Three stages are compared: the uncompressed baseline, which is trained here, the baseline with k-means codebooks, and
the fine-tuned model.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
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
from testbed.datasets.images import Splits, cifar100, fashion_mnist, image_folder
from testbed.errors import ConfigError
from testbed.models.weights import ModelChoice, build_model
from testbed.results.bootstrap import bootstrap_interval
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
    """The configured images. Raises EnvironmentFault if they are missing, ConfigError if they do not fit the model."""
    data, patch = config.data, config.model.patch
    if data.side % patch:
        raise ConfigError("model.patch", patch, f"must divide data.side={data.side}")
    if data.name == "fashion_mnist":
        splits = fashion_mnist(data.side, *([Path(data.folder)] if data.folder else []))
    else:
        splits = {"cifar100": cifar100, "image_folder": image_folder}[data.name](Path(data.folder), data.side)
    if splits.classes != config.model.classes:
        raise ConfigError("model.classes", config.model.classes, f"{data.name} has {splits.classes}")
    if data.train_examples > len(splits.train):
        raise ConfigError("data.train_examples", data.train_examples, f"{data.name} has {len(splits.train)}")
    return splits


class _Bench(AccuracyBench[VitVariant]):
    """The uncompressed baseline, its results on the test part, and the data."""

    def __init__(self, config: AccuracyConfig, folder: RunFolder):
        tokens, choice = (config.data.side // config.model.patch) ** 2, ModelChoice(**asdict(config.model))
        shape = choice.vit_config(tokens).shape
        for variant in all_variants(VitVariant, config):
            variant.codebook_spec.check(shape)
        super().__init__(config, folder, Subject(config.model.name, config.data.name, "accuracy_pct", shape))
        self.config = config
        splits = load_data(config)
        count = config.data.train_examples or len(splits.train)
        self.examples = splits.train.part(torch.arange(count))
        self.validation, self.test = splits.validation, splits.test
        self.uncompressed = AstraVit(build_model(choice, tokens, config.seed))
        self.recipe = {
            "model": asdict(config.model),
            "data": asdict(config.data),
            "uncompressed": asdict(config.uncompressed),
        }
        self.recipe |= {"seed": config.seed, "recipe": RECIPE}
        self._uncompressed_correct: Tensor | None = None

    def measure(self, variant: VitVariant) -> None:
        self._uncompressed()
        model = self.uncompressed.model
        codebooks_LIKd, rotation_LDD = codebooks_of_examples(model, self.examples, variant.codebook_spec, variant.seed)
        quantizer = VectorQuantizer(codebooks_LIKd, variant.vq, rotation_LDD)
        class_tokens = cast(ClassTokens, variant.class_tokens)
        student = AstraVit(copy.deepcopy(model), quantizer, class_tokens, variant.int8_tokens)
        if KMEANS in self.stages:
            self._evaluate(KMEANS, variant, student, {})
        if TRAINED in self.stages:
            settings = variant.settings(self.config.training)
            recipe = self.recipe | {"variant": asdict(variant), "training": asdict(settings)}
            teacher = self.uncompressed if settings.objective.needs_teacher else None
            cost = fine_tune(student, self.examples, self.validation, settings, recipe, teacher)
            self._evaluate(TRAINED, variant, student, cost)

    def _uncompressed(self) -> Tensor:
        """Whether the uncompressed baseline classifies each test image correctly, bool [images].

        The first call trains the baseline and writes its row.
        """
        if self._uncompressed_correct is None:
            settings = TrainingSettings(**asdict(self.config.uncompressed), seed=self.config.seed)
            cost = fine_tune(self.uncompressed, self.examples, self.validation, settings, self.recipe)
            self.uncompressed.requires_grad_(False)
            self._uncompressed_correct = correct = correctness(self.uncompressed, self.test, 1)
            self.write(self.row(UNCOMPRESSED, None, 1), _measured(correct, correct), cost)
        return self._uncompressed_correct

    def _evaluate(self, stage: str, variant: VitVariant, student: AstraVit, cost: dict[str, Any]) -> None:
        """Write the rows of one model, for each number of devices."""
        for row in self.missing(variant).values():
            if row["stage"] == stage:
                correct = correctness(student, self.test, row["devices"])
                self.write(row, _measured(correct, self._uncompressed()), cost)


def _measured(correct: Tensor, uncompressed_correct: Tensor) -> Measured:
    """The share of correct answers, and its change against the uncompressed baseline."""
    values = 100 * correct.double().numpy()
    changes = 100 * (correct.double() - uncompressed_correct.double()).numpy()
    low, high = bootstrap_interval(values)
    change_low, change_high = bootstrap_interval(changes)
    return Measured(
        examples=len(values),
        value=values.mean(),
        value_low=low,
        value_high=high,
        change=changes.mean(),
        change_low=change_low,
        change_high=change_high,
        unit="% correct",
        change_unit=" points",
    )
