"""``make soak``: 50 clusters up and down in one process; what each leaves behind would add up, so it must not grow.

What is made once and kept, such as a thread of a pool that is first needed in the tenth cycle, is no leak; a leak goes
on. So no count of the second half of the cycles may be above the highest of the first. Memory may, a little:
allocators keep what they once had. Ray keeps one or two dead connections of each cluster, which are counted apart.
Threads that come later than the first cycles are named.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.table import Table

from testbed.errors import EnvironmentFault
from testbed.network.probe import choose_backend
from testbed.network.sandbox import inside, scratch, supervise
from testbed.progress import console, steps
from testbed.session import Session
from topologies.link_graph import star

CYCLES, DEVICES = 50, 2
SETTLING = 5  # cycles after which most caches and pools have what they need
MEMORY_GROWTH_MIB = 15  # in half of the cycles


@dataclass(frozen=True)
class Counters:
    """What one process and its sandbox hold between two clusters.

    closed_by_peer: connections that Ray's library does not let go of when it is shut down, one or two for each cluster
    of two devices; they are not among ``descriptors``. memory_mib: resident, of the driver.
    """

    descriptors: int
    closed_by_peer: int
    threads: int
    processes: int
    network_namespaces: int
    interfaces: int
    temporary_files: int
    memory_mib: int

    @classmethod
    def now(cls) -> Counters:
        """Count."""
        own = psutil.Process()
        dead = sum(map(_closed_by_peer, os.listdir("/proc/self/fd")))
        spaces = {os.readlink(f"/proc/{process.pid}/ns/net") for process in (own, *own.children(recursive=True))}
        return cls(
            descriptors=own.num_fds() - dead,
            closed_by_peer=dead,
            threads=own.num_threads(),
            processes=len(own.children(recursive=True)),
            network_namespaces=len(spaces),
            interfaces=len(psutil.net_if_stats()),
            temporary_files=sum(len(files) for _, _, files in os.walk(scratch())),
            memory_mib=own.memory_info().rss >> 20,
        )


def main() -> int:
    """Print the counters after each cycle; exit code 1 if any grew, 2 where Mininet cannot run."""
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else CYCLES
    if not inside():
        try:
            return supervise(sys.argv[1:], choose_backend("mininet"), module="experiments.benchmarks.soak")
        except EnvironmentFault as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    seen: list[Counters] = []
    before = Counter[str]()
    with steps(f"{cycles} clusters of {DEVICES} devices", cycles) as shown:
        for cycle in range(1, cycles + 1):
            with Session("mininet", star(DEVICES)) as session:
                session.shape(100)
                session.collective_s("all_gather", 10_000, 3)
            seen.append(Counters.now())
            values = ", ".join(f"{name} {value}" for name, value in asdict(seen[-1]).items())
            threads = _threads()
            more = ", ".join((threads - before).elements()) if cycle > SETTLING else ""
            before = threads
            shown.done(1, f"[{cycle}/{cycles}] {values}{'; more threads: ' if more else ''}{more}")
    return report(seen)


def _threads() -> Counter[str]:
    """How many threads of each name, as the kernel has it, this process has."""
    found = Counter[str]()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found[Path(f"/proc/self/task/{thread}/comm").read_text().strip()] += 1
    return found


def _closed_by_peer(descriptor: str) -> bool:
    """Whether a descriptor of this process is a TCP connection whose other end is gone."""
    try:
        if not os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:"):
            return False
        with socket.socket(fileno=os.dup(int(descriptor))) as copy:
            if copy.family != socket.AF_INET or copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return False
            copy.getpeername()
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def report(seen: list[Counters]) -> int:
    """The table of the highest counts of each half. Returns 1 if anything grew from one to the other, else 0."""
    half = max(1, len(seen) // 2)
    table = Table("between two clusters", "first", f"highest to cycle {half}", "highest since", "flat")
    grown = 0
    allowed = {"memory_mib": MEMORY_GROWTH_MIB, "closed_by_peer": DEVICES * (len(seen) - half)}
    for name, first in asdict(seen[0]).items():
        values = [getattr(counters, name) for counters in seen]
        before, since = max(values[:half]), max(values[half:], default=0)
        flat = since - before <= allowed.get(name, 0)
        grown += not flat
        table.add_row(name, str(first), str(before), str(since), "yes" if flat else "NO")
    console().print(table)
    return int(grown > 0)


if __name__ == "__main__":
    sys.exit(main())
