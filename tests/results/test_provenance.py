from __future__ import annotations

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
