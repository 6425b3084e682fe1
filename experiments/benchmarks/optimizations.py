"""The part of ``make bench`` about ASTRA's optimizations: measured speedups beside targets and upper bounds.

No schedule can exceed the upper bound of a speedup. It follows from a device's share of the computation and the time of
the bits that it receives, either overlapped or one after the other.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.table import Table

from analysis.load import load_rows
from testbed.astra.codeword_attention import CodewordAttention
from testbed.models.partial_attention import attend_part
from testbed.models.transformer import Block
from testbed.progress import console

# Computation and links run four times slower than the device profile says; latencies are divided by four.
GTX = ["time_scale=4", "compute_mode=replay"]
# (arguments of the run, [(groups, Mbps, target speedup over single)]): 12 layers, D = 768, 1024 tokens
RUNS: list[tuple[list[str], list[tuple[int, int, float]]]] = [
    (
        ["devices=4", "bandwidths=[10,20,100]", "astra.groups=[1,32]", *GTX],
        [(1, 10, 3.6), (32, 20, 1.9), (32, 100, 3.2)],
    ),
    (["devices=8", "bandwidths=[10]", "astra.groups=[1]", *GTX], [(1, 10, 6.0)]),
    (["devices=2", "bandwidths=[10]", "astra.groups=[1]", "compute_mode=execute", "time_scale=1"], [(1, 10, 1.8)]),
]
LONG_TOKENS, MIN_SPEEDUP = 16384, 8.0  # target speedup of attention per codeword at this length
REPEATS = 5


def print_speedup_targets() -> int:
    """Run the experiments of ``RUNS`` and print a line for each target. Returns the exit code of the first failure."""
    table = Table("what", "paper's ASTRA", "with optimizations", "target", "met", "upper bound", "chosen")
    with tempfile.TemporaryDirectory() as folder:
        for number, (arguments, targets) in enumerate(RUNS):
            where = f"{folder}/{number}"
            base = [sys.executable, "-m", "testbed.run", "+experiment=ablation", "astra.optimizations=[paper,auto]"]
            code = subprocess.run(
                [*base, *arguments, f"results_dir={where}"], stdout=sys.stderr, check=False
            ).returncode
            if code:
                return code
            for row in _speedups(Path(where) / "latest", targets):
                table.add_row(*row)
    console().print(table)
    return 0


def _speedups(folder: Path, targets: list[tuple[int, int, float]]) -> Iterator[list[str]]:
    """A line of the table for each target."""
    rows = load_rows(folder)
    single = rows[rows["method"] == "single"]
    for groups, bandwidth, target in targets:
        here = rows[(rows["groups"] == groups) & (rows["bandwidth_mbps"] == bandwidth)]
        base_ms = single.loc[single["bandwidth_mbps"] == bandwidth, "latency_ms"].median()
        fast = here[here["optimizations"] == "auto"]
        speedups = {name: base_ms / part["latency_ms"].median() for name, part in here.groupby("optimizations")}
        wire_ms, count = fast["wire_floor_ms"].iloc[0], int(fast["devices"].iloc[0])
        overlapped, sequential = base_ms / max(base_ms / count, wire_ms), base_ms / (base_ms / count + wire_ms)
        mode = fast["compute_mode"].iloc[0]
        what = f"{mode}: {count} devices, G={groups}, {bandwidth} Mbps, over single"
        bound = f"{sequential:.2f} one after the other ({100 * (speedups['auto'] / sequential - 1):+.0f}%), "
        bound += f"{overlapped:.2f} overlapped"
        met = "yes" if speedups["auto"] >= target else "NO"
        if (here["speedup_fidelity"] == "degraded").any():
            met += " (degraded)"
        chosen = fast["optimizations_resolved"].iloc[0]
        yield [what, f"{speedups['paper']:.2f}", f"{speedups['auto']:.2f}", f"{target:g}", met, bound, chosen]


@torch.no_grad()
def attention_targets() -> Iterator[tuple[str, str, str, bool]]:
    """Attention of one of 4 devices to its received part of LONG_TOKENS tokens, per token and per codeword.

    It runs on one thread.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    block, own, received = Block(768, 12, 3072, 1e-6, False), LONG_TOKENS // 4, LONG_TOKENS // 4 * 3
    attention = CodewordAttention(block, torch.randn(1, 1024, 768))
    codes_RG = torch.randint(1024, (received, 1))
    q, k, v = (torch.randn(1, 12, rows, 64) for rows in (own, received, received))
    token_s = median_s(lambda: attend_part(q, k, v))
    codeword_s = median_s(lambda: attend_part(q, *attention.occurring(codes_RG)))
    ratio = token_s / codeword_s
    what = f"attention to {received} received tokens, G=1, per codeword"
    measured = f"{ratio:.1f} x ({1e3 * token_s:.0f} to {1e3 * codeword_s:.0f} ms)"
    yield what, measured, f"{MIN_SPEEDUP:g} x", ratio >= MIN_SPEEDUP


def median_s(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of ``work`` after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        begin = time.monotonic()
        work()
        times.append(time.monotonic() - begin)
    return statistics.median(times[1:])
