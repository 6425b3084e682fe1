"""Affinity and quotas count, whatever the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed import limits
from testbed.errors import EnvironmentFault

HOW_MANY = "from testbed.limits import usable_cores; print(usable_cores())"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_a_process_bound_to_one_core_has_one() -> None:
    one = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{one}}}); {HOW_MANY}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "1"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),  # a container that sees only its own group, cgroup version 2
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "350000 100000"}, 3),  # the group above has a quota
        ("0::/a/b", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "350000 100000"}, 1),  # half a core is one
        ("0::/a", {"a/cpu.max": "max 100000"}, 8),
        ("0::/a", {"a/cpu.max": "damaged"}, 8),
        (
            "3:cpu,cpuacct:/x",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("1:cpu:/x\n0::/", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 8),
        ("0::/../outside", {"cpu.max": "200000 100000"}, 2),
        ("", {}, 8),
    ],
)
def test_quotas_of_all_groups_above_count(
    membership: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "self").write_text(membership + "\n" if membership else "")
    monkeypatch.setattr(limits, "MOUNT", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "self")
    assert limits.usable_cores() == expected


def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: dict[str, str]) -> None:
    """Let this process be in control groups with these files."""
    monkeypatch.setattr(limits, "MOUNT", tmp_path / "cgroup")
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "self")
    (tmp_path / "self").write_text(membership + "\n")
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_quota_below_one_core_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, monkeypatch, "0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"})
    with pytest.raises(EnvironmentFault, match=r"^CPU quota=0.5 cores: emulation needs at least 1; .*--cpus=2$"):
        limits.refuse_small_quota()
    put(tmp_path, monkeypatch, "0::/a/b", {"a/cpu.max": "100000 100000\n"})
    limits.refuse_small_quota()


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/a", {"a/cpu.stat": "usage_usec 9\nthrottled_usec 1500000\n", "cpu.stat": "usage_usec 1\n"}),
        ("0::/a", {"a/cpu.stat": "throttled_usec 1000000\n", "cpu.stat": "throttled_usec 500000\n"}),  # groups above
        ("3:cpu,cpuacct:/x", {"cpu,cpuacct/x/cpu.stat": "nr_periods 3\nnr_throttled 1\nthrottled_time 1500000000\n"}),
    ],
)
def test_the_time_for_which_a_quota_stopped_this_process_is_known(
    membership: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, monkeypatch, membership, {})
    assert limits.throttled_s() == 0.0
    put(tmp_path, monkeypatch, membership, files)
    assert limits.throttled_s() == 1.5


def test_threads_are_limited_where_cores_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(limits, "usable_cores", lambda: 8)
    limits.limit_threads()
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setattr(limits, "usable_cores", lambda: 3)
    limits.limit_threads()
    assert os.environ.pop("OMP_NUM_THREADS") == "3"


def test_the_machine_is_asked_in_one_place_only() -> None:
    root = Path(limits.__file__).parents[1]
    folders = ("testbed", "experiments", "topologies", "analysis")
    asking = [p for f in folders for p in (root / f).rglob("*.py") if "os.cpu_count" in p.read_text("utf-8")]
    assert asking == [Path(limits.__file__)]


def test_the_memory_of_a_container_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOUNT", tmp_path)
    monkeypatch.setattr(limits, "MEMBERSHIP", tmp_path / "self")
    assert limits.memory_limit_bytes() is None
    (tmp_path / "a").mkdir()
    (tmp_path / "self").write_text("0::/a\n")
    (tmp_path / "a" / "memory.max").write_text("max\n")
    assert limits.memory_limit_bytes() is None
    (tmp_path / "memory.max").write_text("123456\n")
    assert limits.memory_limit_bytes() == 123456
