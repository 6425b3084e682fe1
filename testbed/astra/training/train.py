"""Training of a model on N simulated devices (ASTRA, arXiv 2505.19342; docs/paper.md, section 1.4).

The uncompressed baseline is trained in the same way with N = 1. The optimizer is AdamW (Loshchilov and Hutter, arXiv
1711.05101) with warm-up and a cosine schedule. objective.py defines the loss. *Elastic* training draws the number of
devices and their cut points for each batch, so that one checkpoint serves all numbers of devices. Training runs on a
GPU where there is one, in bfloat16 if the GPU supports it, and otherwise on the CPU in float32.

Each step seeds the random generators from (seed, step), and each epoch's order is drawn from (seed, epoch). On a CPU, a
run that resumes from a checkpoint is therefore bit-identical to a run without the interruption.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from testbed.astra.training.checkpoints import (
    checkpoint_state,
    load_checkpoint,
    load_result,
    save_checkpoint,
    save_result,
    write_json,
)
from testbed.astra.training.evaluation import Examples, correctness
from testbed.astra.training.objective import objective
from testbed.astra.training.settings import TrainingSettings
from testbed.astra.training.vit import Student, random_shares
from testbed.comm.group import even_shares
from testbed.errors import ConfigError, TestbedError
from testbed.progress import Steps, steps
from testbed.results.cache import making
from testbed.results.provenance import provenance

CPU, GPU = "cpu", "cuda"
CHECKPOINT, RESULT, MANIFEST = "checkpoint.safetensors", "astra.safetensors", "manifest.json"


@dataclass(frozen=True)
class Arithmetic:
    """What trained weights depend on besides their recipe: the kind of device, and the precision of products on it."""

    device: str
    precision: str

    @classmethod
    def here(cls) -> Arithmetic:
        """That of training on this machine."""
        if not torch.cuda.is_available():
            return cls(CPU, "float32")
        return cls(GPU, "bfloat16" if torch.cuda.is_bf16_supported() else "float32")


@dataclass
class Progress:
    """The progress of a run, kept in its checkpoints. Accuracies are fractions; times are sums over interruptions."""

    step: int = 0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    loss_sum: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    student: Student,
    examples: Examples,
    validation: Examples,
    settings: TrainingSettings,
    folder: Path,
    teacher: Student | None = None,
    resume: bool = True,
    section: str = "training",
) -> dict[str, Any]:
    """Train ``student`` in place, restore the weights of its best epoch, and return the manifest.

    folder: of these settings alone; another process that trains in it waits, and then finds the result. With ``resume``
    the run continues from the checkpoint in the folder, otherwise it overwrites the folder. Afterwards the folder holds
    RESULT and MANIFEST, which has the cost of the training. teacher: the uncompressed baseline, for an objective with
    distillation; it runs on one device. section: of the keys of ``settings`` in messages.

    Raises ConfigError for settings outside their range or other than those of the folder's checkpoint, EnvironmentFault
    for a damaged checkpoint and for a folder that cannot be written, and TestbedError, with step and learning rate, for
    a loss that is not finite; the last checkpoint stays. Warns of a collapsed codebook.
    """
    run = _Run(student, examples, validation, settings, folder, teacher, section)
    with making(folder), torch.random.fork_rng():
        return run.run(resume)


class _Run:
    """One call of ``train``."""

    def __init__(
        self,
        student: Student,
        examples: Examples,
        validation: Examples,
        settings: TrainingSettings,
        folder: Path,
        teacher: Student | None,
        section: str,
    ):
        settings.check(student.tokens, len(examples), section)
        if not len(validation):
            raise ValueError("no validation examples; the best epoch is chosen by them")
        if teacher is None and settings.objective.needs_teacher:
            raise ConfigError(f"{section}.objective", settings.objective, "distillation needs a teacher")
        if student.quantizer is None and max(settings.devices) > 1:
            raise ConfigError(f"{section}.devices", settings.devices, "more than one device needs codebooks")
        self.examples, self.validation, self.settings, self.folder = examples, validation, settings, folder
        self.section = section
        self.arithmetic = Arithmetic.here()
        self.device = torch.device(self.arithmetic.device)
        self.student = student.to(self.device)
        self.teacher = None if teacher is None else teacher.to(self.device).eval()
        self.student.requires_grad_(True)
        self.optimizer = _adamw(student, settings)
        self.epoch_steps = len(examples) // settings.batch
        self.total_steps = settings.epochs * self.epoch_steps
        self.progress = Progress()
        self.config = {"training": asdict(settings), **student.describe(), "examples": len(examples)}

    def run(self, resume: bool) -> dict[str, Any]:
        """See ``train``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            for name in (CHECKPOINT, RESULT, MANIFEST):
                (self.folder / name).unlink(missing_ok=True)
        elif (self.folder / CHECKPOINT).exists():
            self._resume()
        title = f"training on {self.device}, {self.settings.epochs} epochs"
        with steps(title, self.total_steps) as shown, self._timed():
            shown.fraction(self.progress.step)
            while self.progress.step < self.total_steps and not self._stalled():
                self._epoch(shown)
        load_result(self.folder / RESULT, self.student)
        self.student.eval()
        manifest = self._manifest()
        write_json(self.folder / MANIFEST, manifest)
        return manifest

    def _epoch(self, shown: Steps) -> None:
        """Train to the end of the current epoch, evaluate, and save."""
        progress, settings = self.progress, self.settings
        epoch, done = divmod(progress.step, self.epoch_steps)
        generator = torch.Generator().manual_seed(_seed(settings.seed, "epoch", epoch))
        order = torch.randperm(len(self.examples), generator=generator).split(settings.batch)
        quantizer = self.student.quantizer
        if quantizer is not None and done == 0:
            quantizer.reset_usage()
        self.student.train()
        for indices in order[done : self.epoch_steps]:
            progress.loss_sum += self._step(indices)
            progress.step += 1
            shown.fraction(1)
            if progress.step % settings.checkpoint_steps == 0 and progress.step % self.epoch_steps:
                self._save()
        # the training batch size, because a decoder's logits are large
        results = (correctness(self.student, self.validation, n, settings.batch) for n in settings.devices)
        accuracies = [correct.float().mean().item() for correct in results]
        accuracy = sum(accuracies) / len(accuracies)
        entry = {"epoch": epoch + 1, "loss": progress.loss_sum / self.epoch_steps, "validation_accuracy": accuracy}
        if quantizer is not None and quantizer.used_LIK.any():
            entry["lowest_perplexity"] = self._check_usage(epoch + 1)
        progress.history.append(entry)
        progress.loss_sum = 0.0
        if accuracy > progress.best_accuracy:
            progress.best_accuracy, progress.best_epoch = accuracy, epoch + 1
            save_result(self.folder / RESULT, self.student)
        self._save()
        shown.done(0, ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in entry.items()))

    def _step(self, indices: Tensor) -> float:
        """Train on one batch and return its loss."""
        settings, step = self.settings, self.progress.step
        torch.manual_seed(_seed(settings.seed, "step", step))
        devices = settings.devices[int(torch.randint(len(settings.devices), ()))]
        cut = random_shares if settings.random_cuts else even_shares
        shares = cut(self.student.tokens, devices)
        inputs, targets = (tensor.to(self.device) for tensor in self.examples.batch(indices, settings.augment))
        bfloat16 = self.arithmetic.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16):
            loss = objective(settings.objective, self.student, self.teacher, inputs, targets, shares)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), settings.gradient_norm)
        rate = settings.rate(step, self.total_steps)
        if not math.isfinite(value := loss.item()) or not math.isfinite(norm.item()):
            kept = f"; last good checkpoint: {self.folder / CHECKPOINT}" if (self.folder / CHECKPOINT).exists() else ""
            raise TestbedError(
                f"loss is {value:g}, gradient norm {norm.item():g} at step {step} with learning rate {rate:.3g}: "
                f"lower {self.section}.learning_rate={settings.learning_rate:g}{kept}"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return value

    def _stalled(self) -> bool:
        """Whether ``patience`` epochs have passed without a better one."""
        return 0 < self.settings.patience <= len(self.progress.history) - self.progress.best_epoch

    def _check_usage(self, epoch: int) -> float:
        """The lowest perplexity of all codebooks over the epoch. Warns of collapsed codebooks."""
        assert self.student.quantizer is not None
        perplexity_LI = self.student.quantizer.perplexity()
        size = self.student.quantizer.codebook_size
        for layer, group in (perplexity_LI < self.settings.collapse_below * size).nonzero().tolist():
            used = f"{perplexity_LI[layer, group]:.1f} of {size} codewords (perplexity)"
            message = f"codebook of layer {layer}, group {group} collapsed: it used {used} in epoch {epoch}"
            warnings.warn(f"{message}; lower {self.section}.learning_rate or codebook_sizes", stacklevel=2)
        return perplexity_LI.min().item()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Measure wall and processor time, added to those of the checkpoint."""
        self._wall_start = time.monotonic() - self.progress.wall_s
        self._cpu_start = time.process_time() - self.progress.cpu_s
        yield
        self._read_clocks()

    def _read_clocks(self) -> None:
        self.progress.wall_s = time.monotonic() - self._wall_start
        self.progress.cpu_s = time.process_time() - self._cpu_start

    def _save(self) -> None:
        self._read_clocks()
        state = {"config": self.config, "progress": asdict(self.progress)}
        save_checkpoint(self.folder / CHECKPOINT, self.student, self.optimizer, state)

    def _resume(self) -> None:
        """Continue from the folder's checkpoint."""
        path = self.folder / CHECKPOINT
        state = checkpoint_state(path)
        now = _flat(self.config)
        for key, before in _flat(state["config"]).items():
            if before != now.get(key):
                allowed = f"{path} was made with {before}; set it so, or resume=false to start again"
                raise ConfigError(key, now.get(key), allowed)
        load_checkpoint(path, self.student, self.optimizer)
        self.progress = Progress(**state["progress"])

    def _manifest(self) -> dict[str, Any]:
        progress, gpu = self.progress, self.arithmetic.device == GPU
        hours = {"gpu_hours": progress.wall_s / 3600} if gpu else {"cpu_hours": progress.cpu_s / 3600}
        return {
            "config": self.config,
            "cost": {
                "device": torch.cuda.get_device_name() if gpu else CPU,
                "precision": self.arithmetic.precision,
                "wall_s": progress.wall_s,
                **hours,
                "steps": progress.step,
                "samples": progress.step * self.settings.batch,
                "epochs": len(progress.history),
            },
            "best_validation_accuracy": progress.best_accuracy,
            "best_epoch": progress.best_epoch,
            "history": progress.history,
            "provenance": provenance(),
        }


def _adamw(student: Student, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices only: those of linear layers and a decoder's embeddings."""
    decayed = [p for n, p in student.named_parameters() if n.endswith("weight") and p.dim() == 2]
    rest = [p for n, p in student.named_parameters() if not (n.endswith("weight") and p.dim() == 2)]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def _seed(*parts: object) -> int:
    """A seed of 63 bits that depends on every part."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8]) >> 1


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, with tuples as lists, as in JSON."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
