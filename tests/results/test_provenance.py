from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from testbed.results import provenance
from testbed.results.provenance import ROOT, code_hash


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("testbed/comm/tcp.py", True),
        ("experiments/measurement/calibration.py", True),
        ("topologies/link_graph.py", True),
        ("experiments/benchmarks/soak.py", False),
        ("experiments/paper.py", False),
        ("testbed/config/reference.py", False),
        ("testbed/results/reference.py", False),
    ],
)
def test_only_code_of_measurements_counts(
    name: str, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in provenance.HASHED_FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text())
    before = code_hash()
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert code_hash() == before
    with (tmp_path / name).open("a") as source:
        source.write("# edited\n")
    assert (code_hash() != before) == counts


def test_what_editors_leave_is_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "testbed").mkdir()
    (tmp_path / "testbed" / "a.py").write_text("µ = 1\n", "utf-8")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    before = code_hash()
    (tmp_path / "testbed" / ".#a.py").symlink_to("user@host.1234:5678")  # Emacs locks a file that is being edited
    assert code_hash() == before


def test_any_difference_from_the_commit_has_a_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x", *words], cwd=tmp_path, check=True)

    (tmp_path / "notes.txt").write_text("a\n")
    for words in (("init", "-q"), ("add", "."), ("commit", "-q", "-m", "x")):
        git(*words)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.txt"))
    hashes = [provenance.provenance()["git_dirty_hash"]]
    (tmp_path / "é.py").write_text("")
    hashes.append(provenance.provenance()["git_dirty_hash"])
    (tmp_path / "é.py").write_text("x = 1")
    (tmp_path / "dangling.py").symlink_to("nowhere")
    hashes.append(provenance.provenance()["git_dirty_hash"])
    (tmp_path / "notes.txt").write_bytes(b"caf\xe9\n")  # not UTF-8
    hashes.append(provenance.provenance()["git_dirty_hash"])
    assert hashes[0] is None and len(set(hashes)) == 4
