"""Whether a model classifies each example correctly on N devices, for intervals and paired differences."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from testbed.astra.training.vit import Forward, Student
from testbed.comm.group import even_shares
from testbed.errors import TestbedError


class Examples(Protocol):
    """Inputs with their targets, read by index."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def batch(self, indices: Tensor, augmented: bool = False) -> tuple[Tensor, Tensor]:
        """(inputs [B, ...], targets) on the CPU. augmented: with random changes from the global generator."""
        ...


@torch.no_grad()
def correctness(student: Student, examples: Examples, devices: int, batch: int = 250) -> Tensor:
    """Whether each example is classified correctly on ``devices`` devices of even shares: bool [examples], on the CPU.

    The model is evaluated in eval mode. The order is that of the examples, so that two results can be compared example
    by example. The result has all dimensions of the targets.

    Raises TestbedError for an example whose outputs are not finite numbers, as they have no largest one.
    """
    shares = even_shares(student.tokens, devices)
    on = next(student.parameters()).device
    was_training = student.training
    student.eval()
    correct = []
    for indices in torch.arange(len(examples)).split(batch):
        inputs, targets = examples.batch(indices)
        found: Forward = student(inputs.to(on), shares)
        finite_B = found.logits.isfinite().flatten(1).all(1)
        if not finite_B.all():
            example, on_devices = indices[~finite_B.cpu()][0], f"{devices} device{'s' if devices > 1 else ''}"
            raise TestbedError(f"the outputs of example {example} on {on_devices} are not finite numbers")
        correct.append(found.logits.argmax(-1).cpu() == targets)
    student.train(was_training)
    return torch.cat(correct)
