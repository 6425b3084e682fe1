"""The compute model against computing: each kind of segment of each method, computed on this machine and predicted.

All ranks of a method run in this process and take turns, so each segment has all threads of torch for itself. The
device profile, of this machine, predicts the time of its kernels (``Device.seconds``). Without ``profile=NAME`` the
machine is measured first, and the profile is stored beside the rows.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from experiments.measurement.manifest import Manifest, print_completed
from experiments.measurement.own_device import measure, profile_text
from experiments.measurement.segment_times import Segment, segment_times
from testbed.astra.codebook_spec import CodebookSpec
from testbed.cluster.processor_time import foreign_s, read_processor_time
from testbed.config.device_mix import read_profile
from testbed.config.device_profile import DeviceProfile
from testbed.config.schema import DeviceCheckConfig
from testbed.device.spec import Device
from testbed.errors import ConfigError, EnvironmentFault, TestbedError
from testbed.methods import load_method
from testbed.methods.base import CodebookMethod, Method
from testbed.models.vit import VisionTransformer, patch_grid
from testbed.models.weights import ModelChoice, build_model
from testbed.progress import console, counted, steps
from testbed.results.atomic_write import replacing
from testbed.results.run_folder import RunFolder
from testbed.results.schema import SEGMENT

PROFILE_FILE, PROFILE_NAME = "device_profile.yaml", "this_machine"
ON_CPU = "the search for codewords and the packing of codes run on the processor; processor=cpu checks them"
NOISE = 0.05  # of codewords beyond the tokens, as a share of the tokens' standard deviation

Point = tuple[Method, int, int]  # the method, devices, tokens


def run(config: DeviceCheckConfig, backend: str, folder: RunFolder) -> int:
    """Measure all points that are not completed, and write rows after each. Returns the number of failed points."""
    if config.processor == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("processor=cuda: torch finds no GPU here; processor=cpu checks the processor")
    completed = folder.completed(config.retry_failed)
    points = [point for point in _points(config) if SEGMENT.key(_columns(point)) not in completed]
    print_completed(folder, config, len(points))
    if not points:
        return 0
    profile = next(iter(config.profiles.values()), None) or _own_profile(config, folder)
    Manifest(folder, config, {"device_profile": asdict(profile)})
    device, failed = profile.emulated(), 0
    with steps(f"{len(points)} method variants", len(points)) as shown, tempfile.TemporaryDirectory() as tables:
        for number, point in enumerate(points, 1):
            shown.begin(f"[{number}/{len(points)}] {point[0].label}, {point[2]} tokens")
            begin = time.monotonic()
            fixed = _columns(point) | {"segment": "", "status": "ok", "error": ""}
            try:
                if config.processor == "cuda" and isinstance(point[0], CodebookMethod):
                    rows = [fixed | {"status": "skipped", "error": ON_CPU}]
                else:
                    rows = [fixed | row for row in _measured(config, profile.name, device, point, Path(tables))]
            except ConfigError as fault:
                rows, failed = [fixed | {"status": "failed", "error": str(fault)}], failed + 1
            folder.append(rows)
            shown.done(1.0, f"[{number}/{len(points)}] {_line(point, rows)} ({time.monotonic() - begin:.1f} s)")
    return failed


def _points(config: DeviceCheckConfig) -> Iterator[Point]:
    """Those variants that can divide the model. The baseline runs on one device."""
    for tokens in config.tokens:
        shape = config.model.shape(tokens)
        for name, settings in config.variants():
            for devices in config.worlds(name):
                try:
                    method = load_method(name, **settings)
                    method.check(shape, devices)
                except ConfigError:  # the configuration is refused if no variant of the method fits
                    continue
                yield method, devices, tokens


def _columns(point: Point) -> dict[str, Any]:
    """The key columns."""
    method, devices, tokens = point
    return {"variant": method.label, "devices": devices, "tokens": tokens}


def _own_profile(config: DeviceCheckConfig, folder: RunFolder) -> DeviceProfile:
    """Measure this machine and keep the profile beside the rows; a run that continues uses the one that is there."""
    if (kept := folder.path / PROFILE_FILE).exists():
        try:
            return read_profile(kept)
        except (OmegaConfBaseException, YAMLError, OSError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise TestbedError(f"{kept} is not a profile of a device ({reason}); use resume=false") from None
    with counted(f"measuring this machine ({config.processor}), about a minute") as report:
        found = measure(PROFILE_NAME, config.processor, report)
    with replacing(kept) as path:
        path.write_text(profile_text(found), "utf-8")
    console().print(f"{found.load} The profile is in {kept}", soft_wrap=True)
    return found.profile


@torch.no_grad()
def _measured(
    config: DeviceCheckConfig, profile: str, device: Device, point: Point, tables: Path
) -> Iterator[dict[str, Any]]:
    """The measured columns of each segment of one point. tables: a folder for lookup tables."""
    method, devices, tokens = point
    model = build_model(ModelChoice(**asdict(config.model)), tokens, config.seed).eval()
    rows, columns = (config.model.patch * side for side in patch_grid(tokens))
    inputs = torch.randn(1, 3, rows, columns, generator=torch.Generator().manual_seed(config.seed))
    if isinstance(method, CodebookMethod):
        method.attach(example_codebooks(model, inputs, method.codebook_spec), cache=tables)
    model, inputs = model.to(config.processor), inputs.to(config.processor)
    shards = [method.shard(model, rank, devices) for rank in range(devices)]
    synchronize: Callable[[], None] = torch.cuda.synchronize if config.processor == "cuda" else lambda: None
    before = read_processor_time([os.getpid()])
    psutil.cpu_times_percent()
    times = segment_times(method, shards, inputs, config.repeats, synchronize)
    load: dict[str, Any] = {"steal_pct": getattr(psutil.cpu_times_percent(), "steal", None), "foreign_pct": None}
    after = read_processor_time([os.getpid()])
    if before is not None and after is not None:
        load["foreign_pct"] = 100 * foreign_s(before, after) / (after.cores * (after.at_s - before.at_s))
    made: dict[str, Any] = {"model": config.model.name, "device_profile": profile, "processor": config.processor}
    made["threads"] = torch.get_num_threads()
    for segment, seconds in times.items():
        yield made | load | _row(segment, device, seconds)


def _row(segment: Segment, device: Device, seconds: list[float]) -> dict[str, Any]:
    return {
        "segment": segment.name,
        "kernels": segment.work.launches,
        "macs": segment.work.macs,
        "moved_bytes": segment.work.moved_bytes,
        "predicted_us": 1e6 * device.seconds(segment.work),
        "measured_us": 1e6 * statistics.median(seconds),
        "fastest_us": 1e6 * min(seconds),
        "slowest_us": 1e6 * max(seconds),
        "runs": len(seconds),
        "computes": segment.computes,
    }


@torch.no_grad()
def example_codebooks(model: VisionTransformer, inputs: Tensor, spec: CodebookSpec) -> Tensor:
    """Codebooks of the example's own tokens, as often as needed with a little noise: [L, I, K, W / G].

    So the tokens spread over many codewords, as they do over trained ones. Where the tokens are distinct, ``dedup``
    then finds as many codewords as the formulas say, which is their upper bound.
    """
    generator = torch.Generator().manual_seed(0)
    x_BSD, layers = model.embed(inputs), []
    for block in model.blocks:
        content_TD = x_BSD[0, model.shape.class_tokens :]
        tokens_KD = content_TD[torch.arange(spec.size) % len(content_TD)]
        noise_KD = torch.randn(tokens_KD.shape, generator=generator) * NOISE * content_TD.std()
        noise_KD[: len(content_TD)] = 0
        codewords_KGd = (tokens_KD + noise_KD).unflatten(-1, (spec.groups, -1))
        layers.append(codewords_KGd.transpose(0, 1).repeat(spec.num_quantizers, 1, 1))
        x_BSD = block(x_BSD)
    return torch.stack(layers)


def _line(point: Point, rows: list[dict[str, Any]]) -> str:
    """One line about a finished point."""
    where = f"{point[0].label}, {point[2]} tokens"
    if rows[0]["status"] != "ok":
        return f"{where}: {rows[0]['status'].upper()}: {rows[0]['error']}"
    errors = [abs(100 * (row["predicted_us"] / row["measured_us"] - 1)) for row in rows if row["computes"]]
    return f"{where}: {len(rows)} segments, median error {statistics.median(errors):.0f}%"
