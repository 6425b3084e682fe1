"""``make bench``: speed and memory of the testbed itself, each value beside its target.

Both values of a ratio come from the same run. This is not a test, because timings depend on the machine and its other
load. It needs the Mininet backend.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

from rich.table import Table

from experiments.benchmarks.exchange import Line, all_gather_s, encoders, exchanges
from experiments.benchmarks.optimizations import attention_targets, print_speedup_targets
from experiments.measurement.calibration import steal_notes
from testbed.comm.pacing import wire_bytes
from testbed.errors import EnvironmentFault
from testbed.network.probe import choose_backend
from testbed.network.sandbox import inside, supervise
from testbed.progress import console
from testbed.session import Session
from topologies.link_graph import star

SIZES = (320, 10_000, 100_000)  # bytes from each device: ASTRA's codes at G=1, at G=32, and a larger message
BANDWIDTHS = (10, 20, 50, 100)


def main() -> int:
    """Run all benchmarks; exit code 2 where Mininet cannot run."""
    try:
        backend = choose_backend("mininet")
    except EnvironmentFault as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not inside():
        code = supervise([], backend, module="experiments.benchmarks.instrument")
        return code or _smoke() or print_speedup_targets()
    table = Table("what", "measured", "target", "met")
    for what, measured, target, met in _lines():
        table.add_row(what, measured, target, "yes" if met else "NO")
        console().print(f"{what}: {measured} (target {target})")
    console().print(table)
    return 0


def _lines() -> Iterator[Line]:
    """All measurements in the sandbox, each line as soon as it is known."""
    yield from _clusters()
    yield from _all_gathers()
    yield from encoders()
    yield from exchanges()
    yield from attention_targets()


def _clusters() -> Iterator[Line]:
    """Start-up time, memory, and time to change the links' rates."""
    for devices, start_target_s in ((4, 15), (8, 30)):
        free = _available_gib()
        with Session("mininet", star(devices)) as session:
            used = free - _available_gib()
            yield (
                f"{devices}-host cluster up",
                f"{session.start_s:.1f} s",
                f"{start_target_s} s",
                session.start_s <= start_target_s,
            )
            yield f"{devices}-host cluster memory", f"{used:.1f} GiB", "4 GiB", used <= 4
            times = []
            for bandwidth in (10, 100, 500):
                session.shape(bandwidth)
                times.append(session.reshape_s)
            yield f"re-shape of {devices} links", f"{max(times):.3f} s", "0.2 s", max(times) < 0.2


def _all_gathers() -> Iterator[Line]:
    """All-gathers beside two ideal times: payload over rate, and payload with packet headers over rate (wire ideal)."""
    with Session("mininet", star(4)) as session:
        for bandwidth in BANDWIDTHS:
            session.shape(bandwidth)
            for size in SIZES:
                steal_pct, seconds = all_gather_s(session, size)
                ideal = 3 * size * 8 / (bandwidth * 1e6)
                what = f"all_gather 4 x {size} B at {bandwidth} Mbps"
                what += "".join(f" ({note})" for note in steal_notes(steal_pct))
                if size < 10_000:
                    over_ms = 1e3 * (seconds - ideal)
                    measured = f"{over_ms:+.2f} ms over payload / rate = {1e3 * ideal:.2f} ms"
                    yield what, measured, "+1 ms", over_ms <= 1
                else:
                    wire = 3 * wire_bytes(size) * 8 / (bandwidth * 1e6)
                    measured = f"{seconds / wire:.3f} x the wire ideal, "
                    measured += f"{seconds / ideal:.3f} x payload / rate = {1e3 * ideal:.1f} ms"
                    yield what, measured, "1.10 x wire", seconds / wire <= 1.10


def _smoke() -> int:
    """Time of the smoke experiment, from the command to its table."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "testbed.run", "+experiment=smoke", "resume=false"]
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    seconds = time.monotonic() - begin
    print(f"smoke experiment: {seconds:.0f} s (target 60 s), exit code {code}")
    return code


def _available_gib() -> float:
    """Available memory in GiB."""
    with open("/proc/meminfo") as lines:
        fields = dict(line.split(":") for line in lines)
    return int(fields["MemAvailable"].split()[0]) / 2**20


if __name__ == "__main__":
    sys.exit(main())
