"""What the ranks answered to one call, and whom to blame if some failed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from testbed.errors import ClusterError, CommError

VMSTAT = Path("/proc/vmstat")


class Answers:
    """Results and faults of one call by rank."""

    def __init__(self, phase: str, world: int):
        self.phase, self.world = phase, world
        self._memory_kills = memory_kills()
        self._results: dict[int, Any] = {}
        self._dead: list[int] = []
        self._faults: dict[int, BaseException] = {}

    @property
    def seen(self) -> set[int]:
        """Ranks that have answered, well or not."""
        return {*self._results, *self._dead, *self._faults}

    @property
    def failed(self) -> bool:
        """Whether any rank has failed."""
        return bool(self._dead or self._faults)

    def take(self, rank: int, ref: Any) -> None:
        """Take a finished call's result or fault."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            self._results[rank] = ray.get(ref)
        except RayActorError:
            self._dead.append(rank)
        except RayTaskError as error:
            self._faults[rank] = error.cause

    def results(self, timeout_s: float) -> list[Any]:
        """All results by rank; CommError or ClusterError (see ``Cluster.call_each``) unless every rank gave one."""
        late = sorted(set(range(self.world)) - self.seen)
        if self._dead:
            why = ": the kernel ended processes for lack of memory" if memory_kills() > self._memory_kills else ""
            raise ClusterError(f"{self.phase}: the actor of rank {_listed(self._dead)} died{why}", self._dead)
        comm = {rank: fault for rank, fault in self._faults.items() if isinstance(fault, CommError)}
        for rank, fault in self._faults.items():
            if rank not in comm:
                raise ClusterError(f"{self.phase}: rank {rank}: {type(fault).__name__}: {fault}", [rank])
        if comm:
            text, ranks = blame(comm)
            if late:
                raise ClusterError(f"{self.phase}: {text}; rank {_listed(late)} does not answer at all", late)
            raise CommError(f"{self.phase}: {text}", ranks)
        if late:
            raise ClusterError(f"{self.phase}: rank {_listed(late)} did not answer within {timeout_s:g} s", late)
        return [self._results[rank] for rank in range(self.world)]


def memory_kills() -> int:
    """How many processes the kernel has ended for lack of memory since it started; 0 where it does not tell."""
    try:
        counters = dict(line.split() for line in VMSTAT.read_text().splitlines())
    except OSError:
        return 0
    return int(counters.get("oom_kill", 0))


def blame(faults: dict[int, CommError]) -> tuple[str, list[int]]:
    """(what happened, ranks at fault) from the ranks' reports: those are at fault whom most reports name.

    A rank that has lost its own link misses everybody, while everybody else misses it.
    """
    named = Counter(rank for fault in faults.values() for rank in fault.ranks)
    most = max(named.values(), default=0)
    guilty = sorted(rank for rank, count in named.items() if count == most)
    reports = [fault for fault in faults.values() if set(guilty) & set(fault.ranks)] or list(faults.values())
    best = min(reports, key=lambda fault: len(fault.ranks))  # the report that names no others, if there is one
    return str(best), guilty


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
