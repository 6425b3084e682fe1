from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from testbed.results import provenance

ROOT = Path(__file__).parents[2]


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


def test_a_resumed_run_is_held_to_the_versions_that_can_change_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    now = provenance.provenance()
    assert provenance.other_versions(now) == [] == provenance.other_versions({})
    packages = now["packages"]
    older = now | {"packages": packages | {"torch": "2.12.0", "numpy": "1.0", "pandas": "2.0"}, "python": "3.9.18"}
    python = ".".join(platform.python_version_tuple()[:2])
    assert provenance.other_versions(older) == [
        f"torch 2.12.0, now {packages['torch']}",
        f"numpy 1.0, now {packages['numpy']}",
        f"Python 3.9, now {python}",
    ]
    assert provenance.other_versions(now | {"python": f"{python}.99"}) == []  # a later patch of the interpreter
    monkeypatch.setattr(provenance, "MEASURING_PACKAGES", ("no-such-package",))
    assert provenance.other_versions(now | {"packages": {"no-such-package": "1"}}) == []  # cannot be used now
    assert provenance.other_versions({"packages": ["damaged"], "python": 3}) == []


def test_every_measuring_package_is_installed_or_optional() -> None:
    """A name that was misspelled would never be compared."""
    text = (ROOT / "constraints.txt").read_text() + (ROOT / "requirements-data.txt").read_text()
    pinned = {line.partition("==")[0].strip().lower() for line in text.splitlines() if "==" in line}
    assert {*provenance.MEASURING_PACKAGES, *provenance.OTHER_PACKAGES} <= pinned
