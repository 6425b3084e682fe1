"""What compressed communication costs Vision Transformers: share of test pictures that are classified correctly.

The original is trained here, from scratch; then come k-means codebooks alone, and the adapted model.
"""

from __future__ import annotations

import copy
import itertools
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
    adapted,
    measure_all,
)
from experiments.accuracy_common import variants as all_variants
from testbed.astra.bit_packing import index_bits
from testbed.astra.codebooks import codebooks_of_examples
from testbed.astra.int8_tokens import int8_bits
from testbed.astra.quantizer import check_quantizer
from testbed.astra.training.ema_quantizer import VectorQuantizer
from testbed.astra.training.evaluation import correctness
from testbed.astra.training.settings import TrainingSettings
from testbed.astra.training.vit import AstraVit, ClassTokens
from testbed.comm.group import even_shares
from testbed.config.schema import AccuracyConfig
from testbed.datasets.images import Splits, cifar100, fashion_mnist, image_folder
from testbed.errors import ConfigError
from testbed.models.weights import ModelChoice, build_model
from testbed.results.bootstrap import bootstrap_interval
from testbed.results.run_folder import RunFolder

RECIPE = 1  # to be raised with every change that alters trained models, so that older ones in the cache are not used


@dataclass(frozen=True)
class VitVariant(Variant):
    """With the kind of class tokens."""

    class_tokens: str


def run(config: AccuracyConfig, backend: str, folder: RunFolder) -> int:
    """Train and judge what is not completed yet, row by row. Returns the number of variants that failed."""
    return measure_all(_Bench(config, folder), all_variants(VitVariant, config), config)


def load_data(config: AccuracyConfig) -> Splits:
    """The configured pictures. Raises EnvironmentFault if they are not there, ConfigError if they do not fit."""
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
    """The original model, its test answers, and everything a variant is compared with."""

    def __init__(self, config: AccuracyConfig, folder: RunFolder):
        tokens = (config.data.side // config.model.patch) ** 2
        for groups, size in itertools.product(config.groups, config.codebook_sizes):
            check_quantizer(config.model.hidden, groups, size)
        subject = Subject(config.model.name, config.data.name, "accuracy_pct", tokens, config.model.hidden)
        super().__init__(config, folder, subject)
        self.config = config
        splits = load_data(config)
        count = config.data.train_examples or len(splits.train)
        self.examples = splits.train.part(torch.arange(count))
        self.validation, self.test = splits.validation, splits.test
        self.uncompressed = AstraVit(build_model(ModelChoice(**asdict(config.model)), tokens, config.seed))
        self.recipe = {
            "model": asdict(config.model),
            "data": asdict(config.data),
            "uncompressed": asdict(config.uncompressed),
        }
        self.recipe |= {"seed": config.seed, "recipe": RECIPE}
        self._uncompressed_correct: Tensor | None = None

    def bits(self, variant: VitVariant, devices: int) -> float:
        codes = variant.num_quantizers * variant.groups * index_bits(variant.codebook_size)
        shares = even_shares(self.subject.tokens, devices)
        return codes + int8_bits(variant.int8_tokens, self.subject.hidden, shares)

    def measure(self, variant: VitVariant) -> None:
        self._original()
        model, size = self.uncompressed.model, variant.codebook_size
        of = ([variant.groups], size, variant.seed, variant.num_quantizers, variant.pre_rotation)
        codebooks, pre_rotation = codebooks_of_examples(model, self.examples, *of)[variant.groups]
        quantizer = VectorQuantizer(codebooks, variant.vq, pre_rotation)
        class_tokens = cast(ClassTokens, variant.class_tokens)
        student = AstraVit(copy.deepcopy(model), quantizer, class_tokens, variant.int8_tokens)
        if KMEANS in self.stages:
            self._judge(KMEANS, variant, student, {})
        if TRAINED in self.stages:
            settings = variant.settings(self.config.training)
            recipe = self.recipe | {"variant": asdict(variant), "training": asdict(settings)}
            teacher = self.uncompressed if settings.objective.needs_teacher else None
            cost = adapted(student, self.examples, self.validation, settings, recipe, teacher)
            self._judge(TRAINED, variant, student, cost)

    def _original(self) -> Tensor:
        """Which test examples the uncompressed model gets right, bool [examples]; trained at the first call."""
        if self._uncompressed_correct is None:
            settings = TrainingSettings(**asdict(self.config.uncompressed), seed=self.config.seed)
            cost = adapted(self.uncompressed, self.examples, self.validation, settings, self.recipe)
            self.uncompressed.requires_grad_(False)
            self._uncompressed_correct = correctness(self.uncompressed, self.test, 1)
            self.write(
                self.row(UNCOMPRESSED, None, 1), _measured(self._uncompressed_correct, self._uncompressed_correct), cost
            )
        return self._uncompressed_correct

    def _judge(self, stage: str, variant: VitVariant, student: AstraVit, cost: dict[str, Any]) -> None:
        """Rows of a model on each number of devices."""
        for row in self.missing(variant).values():
            if row["stage"] == stage:
                right = correctness(student, self.test, row["devices"])
                self.write(row, _measured(right, self._original()), cost)


def _measured(right: Tensor, original: Tensor) -> Measured:
    """Shares of right answers, and their change against the original."""
    values, changes = 100 * right.double().numpy(), 100 * (right.double() - original.double()).numpy()
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
        unit="% right",
        change_unit=" points",
    )
