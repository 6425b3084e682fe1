"""``make soak``: start and stop 50 clusters in one process, and check that no resource grows.

A resource that is created once and kept is no leak, such as a pool's thread that is first needed in the tenth cycle. A
leak continues. Therefore no counter of the second half of the cycles may exceed the maximum of the first half. Memory
may grow a little, because allocators keep freed memory. Ray keeps one or two closed connections of each cluster, which
are counted separately. Threads that appear after the first cycles are named.
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
WARM_UP_CYCLES = 5  # after these, most caches and pools are full
MEMORY_GROWTH_MIB = 15  # allowed in half of the cycles


@dataclass(frozen=True)
class Counters:
    """Resources of the driver process and its sandbox between two clusters.

    closed_by_peer: connections that Ray does not close when it is shut down, one or two for each cluster of two
    devices; ``descriptors`` excludes them. memory_mib: resident memory of the driver.
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
        """The current counters."""
        own = psutil.Process()
        closed = sum(map(_closed_by_peer, os.listdir("/proc/self/fd")))
        namespaces = {os.readlink(f"/proc/{process.pid}/ns/net") for process in (own, *own.children(recursive=True))}
        return cls(
            descriptors=own.num_fds() - closed,
            closed_by_peer=closed,
            threads=own.num_threads(),
            processes=len(own.children(recursive=True)),
            network_namespaces=len(namespaces),
            interfaces=len(psutil.net_if_stats()),
            temporary_files=sum(len(files) for _, _, files in os.walk(scratch())),
            memory_mib=own.memory_info().rss >> 20,
        )


def main() -> int:
    """Print the counters after each cycle. Exit code: 1 if a counter grew, 2 where Mininet cannot run."""
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
            more = ", ".join((threads - before).elements()) if cycle > WARM_UP_CYCLES else ""
            before = threads
            shown.done(1, f"[{cycle}/{cycles}] {values}{'; more threads: ' if more else ''}{more}")
    return report(seen)


def _threads() -> Counter[str]:
    """The number of threads of this process, by the kernel's name of the thread."""
    found = Counter[str]()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # the thread has ended
            found[Path(f"/proc/self/task/{thread}/comm").read_text().strip()] += 1
    return found


def _closed_by_peer(descriptor: str) -> bool:
    """Whether a descriptor of this process is a TCP connection that the peer has closed."""
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
    """Print the maximum of each half of the cycles. Returns 1 if a counter grew between the halves, else 0."""
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
