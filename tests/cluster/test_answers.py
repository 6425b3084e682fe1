"""The ranks that a failed call names."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError

from testbed.cluster import answers
from testbed.cluster.answers import Answers
from testbed.errors import ClusterError


@pytest.mark.parametrize(
    ("kills", "text"),
    [(7, "verify: the actor of rank 1 died$"), (8, "died: the kernel ended processes for lack of memory$")],
)
def test_a_dead_actor_is_named_and_so_is_a_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch, kills: int, text: str
) -> None:
    def dead(_: object) -> None:
        raise RayActorError

    monkeypatch.setattr(ray, "get", dead)
    monkeypatch.setattr(answers, "memory_kills", lambda: 7)
    call = Answers("verify", 2)
    call.take(1, None)
    monkeypatch.setattr(answers, "memory_kills", lambda: kills)
    with pytest.raises(ClusterError, match=text) as caught:
        call.results(30.0)
    assert caught.value.ranks == (1,)


def test_the_kernels_count_of_killed_processes_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert answers.memory_kills() >= 0
    monkeypatch.setattr(answers, "VMSTAT", tmp_path / "vmstat")
    assert answers.memory_kills() == 0
    answers.VMSTAT.write_text("nr_free_pages 57\noom_kill 3\n")
    assert answers.memory_kills() == 3
