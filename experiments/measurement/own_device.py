"""This machine as a device profile: measured in about a minute, and written as conf/device/ has them."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import psutil
import torch

from experiments.measurement.host_costs import exchange_s
from experiments.measurement.kernel_rates import Timer, kernel_rates
from testbed.cluster.processor_time import foreign_s, read_processor_time
from testbed.config.device_profile import DeviceProfile, ReferenceModel
from testbed.config.fields import write_curve
from testbed.errors import ConfigError, EnvironmentFault
from testbed.limits import memory_limit_bytes
from testbed.models.vit import VisionTransformer, VitConfig, patch_grid
from testbed.results.provenance import provenance

LARGEST_S = 3.0  # of the reference inference; where it takes longer, one with fewer tokens is the reference
VIT_BASE = ReferenceModel(layers=12, hidden=768, heads=12, patch=16, classes=1000, tokens=1024)
REPEATS = 5  # of the reference inference
STAGED_BYTES = 4 << 20  # of a copy: the activations of some hundred tokens
BUSY_PCT = 5.0  # processor time of other programs above which a profile says that the machine was busy


@dataclass(frozen=True)
class Budget:
    """How long to measure. figure_s: each figure. references: models to choose from. exchanges: TCP exchanges."""

    figure_s: float = 0.5
    references: Sequence[ReferenceModel] = (VIT_BASE, replace(VIT_BASE, tokens=256), replace(VIT_BASE, tokens=64))
    exchanges: int = 1000


@dataclass(frozen=True)
class OwnDevice:
    """A profile of this machine and how it was measured.

    machine: processor, software and date. foreign_pct: processor time of other programs meanwhile, in percent of the
    cores; None where the system does not report it.
    """

    profile: DeviceProfile
    machine: str
    foreign_pct: float | None

    @property
    def load(self) -> str:
        """What other programs did meanwhile, in words."""
        if self.foreign_pct is None:
            return "Whether other programs ran meanwhile is not known."
        used = f"Other programs used {self.foreign_pct:.0f}% of the cores meanwhile"
        return f"{used}: the machine was busy, so measure again." if self.foreign_pct > BUSY_PCT else f"{used}."


def measure(name: str, device: str, report: Callable[[int, int], None], budget: Budget | None = None) -> OwnDevice:
    """Measure this machine's CPU, or its GPU. device: cpu or cuda. report: called with (done, total).

    Raises EnvironmentFault without the device, and if what was measured contradicts itself.
    """
    budget = budget or Budget()
    if device == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("device=cuda: torch finds no GPU here; device=cpu measures the processor")
    before = read_processor_time([os.getpid()])
    rates = kernel_rates(device, budget.figure_s, report)
    reference, reference_s = _reference(device, budget.references)
    profile = DeviceProfile(
        name=name,
        reference_model=reference,
        reference_s=_rounded(reference_s),
        memory_gb_per_s=_rounded(rates.memory_bytes_per_s / 1e9),
        memory_gb=_rounded(_memory_bytes(device) / 1e9),
        launch_us=_rounded(1e6 * rates.launch_s),
        exchange_us=_rounded(1e6 * exchange_s(budget.exchanges)),
        staging_gb_per_s=_rounded(_staging_bytes_per_s(device, budget.figure_s) / 1e9),
        row_efficiency=write_curve(rates.row_efficiency),
        inner_efficiency=write_curve(rates.inner_efficiency),
        attention_efficiency=_rounded(rates.attention_efficiency),
    )
    try:
        profile.emulated()
    except ConfigError as error:
        reason = f"what was measured contradicts itself ({error}); measure again when less runs"
        raise EnvironmentFault(reason) from None
    after = read_processor_time([os.getpid()])
    foreign = None
    if before is not None and after is not None:
        foreign = 100 * foreign_s(before, after) / (after.cores * (after.at_s - before.at_s))
    return OwnDevice(profile, _machine(device), foreign)


def profile_text(found: OwnDevice) -> str:
    """The file of a profile, with a comment for each key."""
    profile, model = found.profile, found.profile.reference_model
    sizes = ", ".join(f"{key}: {value}" for key, value in vars(model).items())
    lines = [
        f"# Measured on {found.machine}.",
        "#",
        f"# {found.load}",
        "# Each figure is the median of several tries after a warm-up, with torch at its default threads.",
        f"name: {profile.name}",
        f"reference_model: {{{sizes}}}",
        f"reference_s: {_plain(profile.reference_s)}  # s, one inference of the reference model with random weights",
        f"memory_gb_per_s: {_plain(profile.memory_gb_per_s)}  # GB/s, norms, GELUs and sums of 257 and 1025 rows",
        f"memory_gb: {_plain(profile.memory_gb)}  # GB that programs may use",
        f"launch_us: {_plain(profile.launch_us)}  # us, an operation on a few numbers",
        f"exchange_us: {_plain(profile.exchange_us)}  # us, half a TCP exchange of 320 B between two processes",
        f"staging_gb_per_s: {_plain(profile.staging_gb_per_s)}  # GB/s, a copy of 4 MB; of a GPU, to pinned memory",
        "# SHARE@SIZE: shares of the largest rate of products. Where a larger product was slower, the curve keeps the",
        "# share of the smaller one (cumulative maximum).",
        f"row_efficiency: {profile.row_efficiency}  # by rows, with an inner width of 768",
        f"inner_efficiency: {profile.inner_efficiency}  # by inner width, with 256 rows",
        f"attention_efficiency: {_plain(profile.attention_efficiency)}  # fused attention, 65 to 1025 queries",
    ]
    return "\n".join(lines) + "\n"


def _machine(device: str) -> str:
    made = provenance()
    what = torch.cuda.get_device_name() if device == "cuda" else f"{made['cpu']}, {torch.get_num_threads()} threads"
    return f"{what}, torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"


@torch.no_grad()
def _reference(device: str, references: Sequence[ReferenceModel]) -> tuple[ReferenceModel, float]:
    """(the first of these models that is fast enough here, or the last one; median seconds of its inference)."""
    for reference in references:
        model, tokens = _model(reference).eval().to(device), reference.tokens
        rows, columns = (reference.patch * side for side in patch_grid(tokens))
        timer = Timer(device, 0.0)
        pixels = timer.numbers(1, 3, rows, columns)
        (first_s,) = timer.tries([lambda model=model, pixels=pixels: model(pixels)])
        if first_s <= LARGEST_S or reference is references[-1]:
            break
    return reference, statistics.median(timer.tries([lambda: model(pixels)])[0] for _ in range(REPEATS))


def _model(reference: ReferenceModel) -> VisionTransformer:
    return VisionTransformer(
        VitConfig(
            layers=reference.layers,
            hidden=reference.hidden,
            heads=reference.heads,
            patch=reference.patch,
            tokens=reference.tokens,
            classes=reference.classes,
        )
    )


def _memory_bytes(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return memory_limit_bytes() or psutil.virtual_memory().total


def _staging_bytes_per_s(device: str, budget_s: float) -> float:
    """Rate of a copy from the device's memory to the host's; of a CPU, within its memory."""
    source = torch.empty(STAGED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty(STAGED_BYTES, dtype=torch.uint8, pin_memory=device == "cuda")
    return STAGED_BYTES / Timer(device, budget_s).seconds([lambda: target.copy_(source)])


def _rounded(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def _plain(value: float) -> str:
    """Without an exponent, which YAML and the command line may read differently."""
    return f"{value:.10f}".rstrip("0").rstrip(".")
