"""The training loss: cross-entropy on labels, distillation from the uncompressed model, and the commitment term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from testbed.astra.training.vit import Forward, Student
from testbed.errors import ConfigError


@dataclass(frozen=True)
class Objective:
    """Weights of the terms of the loss; a term of weight 0 is not computed.

    labels: cross-entropy. logits: KL divergence from the teacher's outputs at ``temperature``, times its square (Hinton
    et al., arXiv 1503.02531). states: squared difference to the teacher's content rows over their mean square, mean of
    all layers. commitment: beta, for the sum over layers of |X - sg(X̂)|^2, mean over tokens; the paper uses 1e-4 to
    5e-4.
    """

    labels: float = 1.0
    logits: float = 0.0
    states: float = 0.0
    temperature: float = 2.0
    commitment: float = 2e-4

    @property
    def needs_teacher(self) -> bool:
        """Whether a term compares with the uncompressed model."""
        return self.logits > 0 or self.states > 0

    def check(self) -> None:
        """Raise ConfigError (key ``training.objective.<setting>``) for a value outside its range."""
        for key in ("labels", "logits", "states", "commitment"):
            if getattr(self, key) < 0:
                raise ConfigError(f"training.objective.{key}", getattr(self, key), "must be 0 or more")
        if self.temperature <= 0:
            raise ConfigError("training.objective.temperature", self.temperature, "must be more than 0")
        if self.labels == self.logits == self.states == 0:
            raise ConfigError("training.objective.labels", self.labels, "must be more than 0, or logits, or states")


def objective(
    weights: Objective,
    student: Student,
    teacher: Student | None,
    inputs: Tensor,
    targets: Tensor,
    shares: Sequence[int],
) -> Tensor:
    """The loss of a batch, a scalar. ``targets`` [...] are classes of ``logits`` [..., classes].

    teacher: runs on one device, without gradients; needed where ``weights.needs_teacher``.
    """
    found: Forward = student(inputs, shares, keep_states=weights.states > 0)
    logits = found.logits.float()
    loss = weights.commitment * found.commitment
    if weights.labels:
        loss = loss + weights.labels * F.cross_entropy(logits.flatten(0, -2), targets.flatten())
    if weights.needs_teacher:
        assert teacher is not None
        with torch.no_grad():
            taught: Forward = teacher(inputs, [teacher.tokens], keep_states=weights.states > 0)
        if weights.logits:
            log_student = (logits / weights.temperature).log_softmax(-1).flatten(0, -2)
            log_teacher = (taught.logits.float() / weights.temperature).log_softmax(-1).flatten(0, -2)
            divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
            loss = loss + weights.logits * weights.temperature**2 * divergence
        if weights.states:
            pairs = zip(found.states, taught.states, strict=True)
            ratios = [(own - theirs).square().mean() / theirs.square().mean() for own, theirs in pairs]
            loss = loss + weights.states * torch.stack(ratios).mean()
    return loss
