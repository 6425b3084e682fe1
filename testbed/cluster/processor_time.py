"""Whose processor time it was: that of this run's processes, or that of other programs on the same cores."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psutil

# Linux's clock of the processor time of a process: the inverted number of the process, and which of its clocks. It
# counts nanoseconds; /proc/PID/stat counts hundredths of a second.
PROCESS_CLOCK = 2  # CPUCLOCK_SCHED
# Time in which a core did nothing for a program: idle, taken by the host, or in the kernel for packets and timers.
WITHOUT_PROGRAM = ("idle", "iowait", "steal", "irq", "softirq")


@dataclass(frozen=True)
class ProcessorReading:
    """Processor time so far, in seconds. at_s: monotonic time. cores: number of cores that this process may use.

    without_program_s: of these cores together, in which they ran no program. of_processes: by process of this run.
    """

    at_s: float
    cores: int
    without_program_s: float
    of_processes: Mapping[int, float]


def read_processor_time(processes: Iterable[int]) -> ProcessorReading | None:
    """The processor time so far. processes: of this run. None where the system does not report it as Linux does."""
    if not sys.platform.startswith("linux"):
        return None
    of_processes = {pid: spent for pid in processes if (spent := _process_s(pid)) is not None}
    usable = os.sched_getaffinity(0)
    if len(usable) >= (psutil.cpu_count() or 1):
        counted = [psutil.cpu_times()]  # rounded once, not once for each core
    else:
        counted = [times for core, times in enumerate(psutil.cpu_times(percpu=True)) if core in usable]
    without = sum(getattr(times, name, 0.0) for times in counted for name in WITHOUT_PROGRAM)
    return ProcessorReading(time.monotonic(), len(usable), without, of_processes)


def foreign_s(before: ProcessorReading, after: ProcessorReading) -> float:
    """Processor seconds of other programs between two readings; never below 0.

    The kernel's threads count as others. The kernel rounds what cores did to hundredths of a second.
    """
    own = sum(spent - before.of_processes.get(pid, 0.0) for pid, spent in after.of_processes.items())
    total = after.cores * (after.at_s - before.at_s)
    return max(0.0, total - (after.without_program_s - before.without_program_s) - own)


def _process_s(pid: int) -> float | None:
    """Processor seconds of all threads of a process, ended ones too; None if it is gone."""
    try:
        return time.clock_gettime(~pid << 3 | PROCESS_CLOCK)
    except OSError:
        return None
