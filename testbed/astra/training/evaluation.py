"""How often a model is right on N devices, example by example, so that intervals and paired differences can be made."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from testbed.astra.training.vit import Forward, Student
from testbed.comm.group import even_shares


class Examples(Protocol):
    """Inputs with their targets, read by index."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, indices: Tensor, augmented: bool = False) -> tuple[Tensor, Tensor]:
        """(inputs [B, ...], targets) on the CPU; augmented: varied at random, by the global generator."""
        ...


@torch.no_grad()
def correctness(student: Student, examples: Examples, devices: int, batch: int = 250) -> Tensor:
    """Whether each example is classified correctly on ``devices`` devices of even shares: bool [examples], on the CPU.

    What is evaluated is inference: no noise, and codebooks stay as they are. The examples come in their own order, so
    two results can be compared example by example. Where targets have more dimensions, so has the result.
    """
    shares = even_shares(student.tokens, devices)
    on = next(student.parameters()).device
    was_training = student.training
    student.eval()
    right = []
    for indices in torch.arange(len(examples)).split(batch):
        inputs, targets = examples.batch(indices)
        found: Forward = student(inputs.to(on), shares)
        right.append(found.logits.argmax(-1).cpu() == targets)
    student.train(was_training)
    return torch.cat(right)
