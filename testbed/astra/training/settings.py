"""Settings of a training run, with the checks that are possible before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from testbed.astra.training.objective import Objective
from testbed.errors import ConfigError


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run.

    warmup: fraction of all steps. augment: change the training examples at random, which reduces overfitting in long
    runs but harms short ones (150 batches of 128 Fashion-MNIST images, patch 7: 68% of validation images correct, 81%
    without). devices: numbers of devices, one of which is drawn for each batch. random_cuts: draw the cut points too;
    otherwise shares are even. patience: epochs without a better validation accuracy after which training ends, 0 for
    never. collapse_below: warn of a codebook that uses fewer than this fraction of its codewords (perplexity over an
    epoch).
    """

    epochs: int = 10
    batch: int = 128
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    gradient_norm: float = 1.0
    augment: bool = False
    seed: int = 0
    devices: tuple[int, ...] = (1,)
    random_cuts: bool = False
    objective: Objective = field(default_factory=Objective)
    patience: int = 0
    collapse_below: float = 0.01
    checkpoint_steps: int = 500

    def check(self, tokens: int, examples: int, section: str = "training") -> None:
        """Raise ConfigError (key ``<section>.<setting>``) for a value outside its range.

        tokens, examples: of an example, and how many there are for training.
        """
        rules = (
            ("epochs", self.epochs >= 1, "1 or more"),
            ("batch", 1 <= self.batch <= examples, f"1 to {examples}, the number of training examples"),
            ("learning_rate", self.learning_rate > 0, "more than 0"),
            ("warmup", 0 <= self.warmup <= 1, "0 to 1"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
            ("gradient_norm", self.gradient_norm > 0, "more than 0"),
            (
                "devices",
                self.devices and all(1 <= n <= tokens for n in self.devices),
                f"from 1 to {tokens}, the tokens",
            ),
            ("patience", self.patience >= 0, "0 or more"),
            ("collapse_below", 0 <= self.collapse_below < 1, "0 or more, less than 1"),
            ("checkpoint_steps", self.checkpoint_steps >= 1, "1 or more"),
        )
        for key, holds, allowed in rules:
            if not holds:
                raise ConfigError(f"{section}.{key}", getattr(self, key), f"must be {allowed}")
        self.objective.check()

    def rate(self, step: int, total_steps: int) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine down to 0."""
        warm = self.warmup * total_steps
        if step + 1 <= warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total_steps - warm)))
