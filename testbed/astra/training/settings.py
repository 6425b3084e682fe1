"""Settings of a training run, and what of them can be checked before it starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from testbed.astra.training.objective import Objective
from testbed.errors import ConfigError


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how fast, on which devices, and towards what.

    warmup: fraction of all steps. devices: their numbers; one is drawn for each batch. random_cuts: cut points are
    drawn too, else shares are even. patience: epochs without a better validation accuracy after which training ends, 0
    for never. collapse_below: a codebook that uses fewer than this fraction of its codewords (perplexity over an epoch)
    is warned of. augment: vary the training examples at random, against overfitting in long runs; it makes short ones
    worse (150 batches of 128 Fashion-MNIST pictures, patch 7: 68% of validation pictures right, 81% without).
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

    def check(self, tokens: int, examples: int) -> None:
        """Raise ConfigError for values that cannot be, alone or with this model and these examples."""
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
                raise ConfigError(f"training.{key}", getattr(self, key), f"must be {allowed}")
        self.objective.check()

    def rate(self, step: int, total_steps: int) -> float:
        """Learning rate of a step: a straight line up over the warm-up, then half a cosine down towards 0."""
        warm = self.warmup * total_steps
        if step + 1 <= warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total_steps - warm)))
