"""Whose processor time it was, on this machine, with a child that belongs to the run and one that does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from testbed.cluster.processor_time import ProcessorReading, foreign_s, read_processor_time

SPIN = "while True: pass"


@contextmanager
def spinning() -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        time.sleep(0.1)
        yield child.pid
    finally:
        child.kill()
        child.wait()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_a_program_is_foreign_unless_it_belongs_to_the_run() -> None:
    with spinning() as child:
        before = read_processor_time([os.getpid()]), read_processor_time([os.getpid(), child])
        time.sleep(1.0)
        after = read_processor_time([os.getpid()]), read_processor_time([os.getpid(), child])
    (first, with_child), (last, last_with_child) = before, after
    assert first and with_child and last and last_with_child
    foreign, own = foreign_s(first, last), foreign_s(with_child, last_with_child)
    spent = last_with_child.of_processes[child] - with_child.of_processes[child]
    assert spent > 0.2  # of a second, however busy the machine is
    assert foreign - own == pytest.approx(spent, abs=0.03)
    assert last.cores == len(os.sched_getaffinity(0))


def test_processes_may_begin_and_end() -> None:
    before = ProcessorReading(10.0, 2, 100.0, {1: 5.0, 2: 7.0})
    after = ProcessorReading(11.0, 2, 100.5, {1: 5.25, 3: 0.5})  # 2 has ended, 3 has begun
    assert foreign_s(before, after) == pytest.approx(2.0 - 0.5 - 0.25 - 0.5)
    idle = ProcessorReading(11.0, 2, 102.1, {1: 5.0, 2: 7.0})  # rounded
    assert foreign_s(before, idle) == 0.0


def test_a_process_that_is_gone_counts_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    reading = read_processor_time([child.pid])
    assert reading is None or reading.of_processes == {}
