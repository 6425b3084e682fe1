"""The part of ``make bench`` about ASTRA's optimizations: targets, what was reached, and how far from the floor that
is.

The floor of a speed-up is what no schedule can beat: a device's share of one device's computation, and the bits that it
receives over the rate, side by side or one after the other.
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

GTX = ["time_scale=4", "compute_mode=replay"]  # slots and links four times slower than the profile's, divided by four
# (arguments of the run, [(groups, Mbps, target over single)]): 12 layers, D = 768, 1024 tokens
RUNS: list[tuple[list[str], list[tuple[int, int, float]]]] = [
    (
        ["devices=4", "bandwidths=[10,20,100]", "astra.groups=[1,32]", *GTX],
        [(1, 10, 3.6), (32, 20, 1.9), (32, 100, 3.2)],
    ),
    (["devices=8", "bandwidths=[10]", "astra.groups=[1]", *GTX], [(1, 10, 6.0)]),
    (["devices=2", "bandwidths=[10]", "astra.groups=[1]", "compute_mode=execute", "time_scale=1"], [(1, 10, 1.8)]),
]
LONG, GROWTH = 16384, 8.0  # tokens; how much faster attention per codeword must be
REPEATS = 5


def print_speedup_targets() -> int:
    """Run the experiments of ``RUNS`` as a user would, print a line for each target; the first failure's exit code."""
    table = Table("what", "paper's ASTRA", "with optimizations", "target", "met", "floor", "chosen")
    with tempfile.TemporaryDirectory() as folder:
        for number, (arguments, targets) in enumerate(RUNS):
            where = f"{folder}/{number}"
            base = [sys.executable, "-m", "testbed.run", "+experiment=ablation", "astra.optimizations=[paper,auto]"]
            code = subprocess.run(
                [*base, *arguments, f"results_dir={where}"], stdout=sys.stderr, check=False
            ).returncode
            if code:
                return code
            for row in _reached(Path(where) / "latest", targets):
                table.add_row(*row)
    console().print(table)
    return 0


def _reached(folder: Path, targets: list[tuple[int, int, float]]) -> Iterator[list[str]]:
    rows = load_rows(folder)
    single = rows[rows["method"] == "single"]
    for groups, bandwidth, target in targets:
        here = rows[(rows["groups"] == groups) & (rows["bandwidth_mbps"] == bandwidth)]
        base_ms = single.loc[single["bandwidth_mbps"] == bandwidth, "latency_ms"].median()
        fast = here[here["optimizations"] == "auto"]
        reached = {name: base_ms / part["latency_ms"].median() for name, part in here.groupby("optimizations")}
        wire_ms, count = fast["wire_floor_ms"].iloc[0], int(fast["devices"].iloc[0])
        both, apart = base_ms / max(base_ms / count, wire_ms), base_ms / (base_ms / count + wire_ms)
        mode = fast["compute_mode"].iloc[0]
        what = f"{mode}: {count} devices, G={groups}, {bandwidth} Mbps, over single"
        floor = (
            f"{apart:.2f} one after the other ({100 * (reached['auto'] / apart - 1):+.0f}%), {both:.2f} side by side"
        )
        met = "yes" if reached["auto"] >= target else "NO"
        chosen = fast["optimizations_resolved"].iloc[0]
        yield [what, f"{reached['paper']:.2f}", f"{reached['auto']:.2f}", f"{target:g}", met, floor, chosen]


@torch.no_grad()
def attention_targets() -> Iterator[tuple[str, str, str, bool]]:
    """Attention of one of 4 devices to what it received of LONG tokens, per token and per codeword, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    block, own, received = Block(768, 12, 3072, 1e-6, False), LONG // 4, LONG // 4 * 3
    attention = CodewordAttention(block, torch.randn(1, 1024, 768))
    codes_RG = torch.randint(1024, (received, 1))
    q, k, v = (torch.randn(1, 12, rows, 64) for rows in (own, received, received))
    token_s = median_s(lambda: attend_part(q, k, v))
    codeword_s = median_s(lambda: attend_part(q, *attention.occurring(codes_RG)))
    ratio = token_s / codeword_s
    what = f"attention to {received} received tokens, G=1, per codeword"
    yield what, f"{ratio:.1f} x ({1e3 * token_s:.0f} to {1e3 * codeword_s:.0f} ms)", f"{GROWTH:g} x", ratio >= GROWTH


def median_s(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Seconds that ``work`` takes, the first time not counted."""
    times = []
    for _ in range(repeats + 1):
        begin = time.monotonic()
        work()
        times.append(time.monotonic() - begin)
    return statistics.median(times[1:])
