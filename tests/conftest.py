"""What several test modules need: ranks as threads of this process, connected by real TCP on the loopback interface."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import settings
from torch import Tensor
from xdist.scheduler import LoadScopeScheduling

from testbed.comm.connect import connect, listen
from testbed.comm.routes import RankLinks
from testbed.comm.tcp import TcpGroup

T = TypeVar("T")


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several processes that run tests (pytest-xdist) its own folder for temporary files, and one thread.

    So tests that look for what a run has left behind do not find what others beside them are still using. Threads that
    wait for each other on cores which other tests keep busy would take many times as long as one alone.
    """
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
        tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="worker-", dir="/tmp")
        config.add_cleanup(partial(shutil.rmtree, tempfile.tempdir, ignore_errors=True))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Emulation tests run one after another, in one process, from the beginning; all others beside them."""
    return EmulationTogether(config, log)


class EmulationTogether(LoadScopeScheduling):
    """Sends emulation tests to one process, and each other test to whichever is free: the largest scope goes first."""

    def _split_scope(self, nodeid: str) -> str:
        return "emulation" if nodeid.startswith("tests/emulation/") else nodeid


settings.register_profile("any machine", deadline=None)  # how long an example takes is the machine's affair
settings.register_profile("long", parent=settings.get_profile("any machine"))  # see tests/anyone/command.py
settings.load_profile("any machine")


def check_all_gather(full: Tensor, rows: list[int], links: Callable[[int], RankLinks] | None = None) -> None:
    """Both all-gathers give every rank ``full``, of which it has its ``rows``, and count what others sent.

    links: of each rank, where they are not those that a group has from the beginning.
    """

    def main(group: TcpGroup) -> tuple[Tensor, Tensor, int]:
        if links is not None:
            group.set_links(links(group.rank))
        mine = full.split(rows)[group.rank].clone()
        gathered = group.all_gather(mine, rows)
        counted = group.traffic.received_bytes
        return gathered, group.all_gather_async(mine, rows).wait(), counted

    for rank, (sync, later, counted) in enumerate(run_ranks(len(rows), main)):
        assert torch.equal(sync, full) and torch.equal(later, full)
        assert counted == (sum(rows) - rows[rank]) * full.shape[1] * full.element_size()


def best_gather_s(group: TcpGroup, size: int) -> float:
    """Seconds of an all-gather of ``size`` bytes from everybody: the best of eight, whatever else the machine does."""
    times = []
    for _ in range(8):
        group.barrier()
        begin = time.monotonic()
        group.all_gather(torch.zeros(size, dtype=torch.uint8), [size] * group.world)
        times.append(time.monotonic() - begin)
    return min(times)


def run_ranks(
    world: int,
    rank_main: Callable[[TcpGroup], T],
    timeout_s: float = 20.0,
    first: Callable[[list[tuple[str, int]], bytes], None] | None = None,
) -> list[T]:
    """Run ``rank_main(group)`` on each of ``world`` ranks and return the results by rank. The first error is raised.

    ``first(addresses, token)`` is called when the data ports listen and no rank has come yet.
    """
    listeners = [listen("127.0.0.1") for _ in range(world)]
    addresses = [listener.getsockname() for listener in listeners]
    token = os.urandom(16)
    results: list[T | None] = [None] * world
    errors: list[BaseException] = []
    if first is not None:
        first(addresses, token)

    def run(rank: int) -> None:
        try:
            group = connect(rank, addresses, listeners[rank], token, timeout_s)
            try:
                results[rank] = rank_main(group)
            finally:
                group.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results  # type: ignore[return-value]
