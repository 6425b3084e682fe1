"""The ranks' answers to one call, and which ranks are at fault if some failed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from testbed.errors import ClusterError, CommError

VMSTAT = Path("/proc/vmstat")


class Answers:
    """Results and faults of one call, by rank."""

    def __init__(self, phase: str, world: int):
        self.phase, self.world = phase, world
        self._memory_kills = memory_kills()
        self._results: dict[int, Any] = {}
        self._dead: list[int] = []
        self._faults: dict[int, BaseException] = {}

    @property
    def seen(self) -> set[int]:
        """Ranks that have answered, with a result or a fault."""
        return {*self._results, *self._dead, *self._faults}

    @property
    def failed(self) -> bool:
        """Whether some rank has failed."""
        return bool(self._dead or self._faults)

    def take(self, rank: int, ref: Any) -> None:
        """Store the result or the fault of a finished call."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        try:
            self._results[rank] = ray.get(ref)
        except RayActorError:
            self._dead.append(rank)
        except RayTaskError as error:
            self._faults[rank] = error.cause

    def results(self, timeout_s: float) -> list[Any]:
        """All results, by rank. CommError or ClusterError (see ``Cluster.call_each``) unless every rank has one."""
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
    """Number of processes that the kernel has killed for lack of memory since boot; 0 where it does not say."""
    try:
        counters = dict(line.split() for line in VMSTAT.read_text().splitlines())
    except OSError:
        return 0
    return int(counters.get("oom_kill", 0))


def blame(faults: dict[int, CommError]) -> tuple[str, list[int]]:
    """(what happened, ranks at fault) from the ranks' reports. The ranks that most reports name are at fault.

    A rank that has lost its own link reports all others, and all others report it.
    """
    named = Counter(rank for fault in faults.values() for rank in fault.ranks)
    most = max(named.values(), default=0)
    at_fault = sorted(rank for rank, count in named.items() if count == most)
    reports = [fault for fault in faults.values() if set(at_fault) & set(fault.ranks)] or list(faults.values())
    best = min(reports, key=lambda fault: len(fault.ranks))  # the report that names the fewest other ranks
    return str(best), at_fault


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))
