"""Real-time priority is taken for all threads and given back."""

from __future__ import annotations

import os
import resource
import sys
import threading

import pytest

from testbed.device import priority

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="scheduling policies of Linux")


def policies() -> set[int]:
    return {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")}


def test_all_threads_take_it_and_give_it_back() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    before = policies()
    with priority.realtime() as reached:
        assert policies() == ({os.SCHED_RR} if reached == priority.REALTIME else before)
    assert policies() == before
    done.set()
    thread.join()


def test_where_it_is_refused_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert priority.attainable_priority() == priority.NORMAL


def test_what_an_administrator_has_granted_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (0, 1))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: taken.append(limits))
    priority.attainable_priority()
    assert taken == [(1, 1)]
