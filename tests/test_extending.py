"""What docs/extending.md says works: its files and insertions in a copy of the tree, its commands, its test."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`([\w/.]+)`:\n\n```(?:python|yaml)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
INSERTIONS = re.findall(
    r"[Ii]n\s`([\w/.]+)`, after the line `(.*?)`:\n\n```text\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL
)
COMMANDS = re.findall(r"^\.venv/bin/python -m testbed\.run (.*)$", TEXT.replace("\\\n", ""), re.MULTILINE)
CHECK = """
import shlex
import sys
from testbed.config.load import load_config
for line in sys.stdin.read().splitlines():
    print(load_config([word for word in shlex.split(line) if not word.startswith("network=")]).experiment)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree with the page's files and insertions in it."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("testbed", "analysis", "experiments", "topologies", "conf", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, text in FILES.items():
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    for name, line, text in INSERTIONS:
        source = (folder / name).read_text()
        assert source.count(f"{line}\n") == 1
        (folder / name).write_text(source.replace(f"{line}\n", f"{line}\n{text}"))
    return folder


def python(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, **more
    )


def test_the_page_has_files_insertions_and_commands() -> None:
    assert len(FILES) == 6 and len(INSERTIONS) == 2 and len(COMMANDS) == 7


def test_commands_are_accepted(copy: Path) -> None:
    done = python(copy, "-c", CHECK, input="\n".join(COMMANDS))
    sweep = "bandwidth_sweep"
    of_device = [sweep, "device_check", "heterogeneous_devices"]
    assert done.stdout.split() == [*of_device, sweep, sweep, "smoke", "smoke"], done.stderr
    for name in ("my_board", "vit_large", "two_rooms", "broadcast"):
        assert any(name in command for command in COMMANDS)


def test_a_column_needs_no_more_than_the_page_says(copy: Path, tmp_path: Path) -> None:
    (command,) = (command for command in COMMANDS if "network=analytic" in command)
    done = python(copy, "-m", "testbed.run", *shlex.split(command), f"results_dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pd.read_csv(tmp_path / "latest" / "results.csv").set_index("method")
    assert rows["device_macs"].notna().all()
    assert rows["device_macs"]["tensor"].max() < rows["device_macs"]["single"].max()
    script = "from analysis import load_rows, points; print('device_macs' in points(load_rows(%r)))"
    assert python(copy, "-c", script % str(tmp_path / "latest")).stdout == "True\n"
    assert python(copy, "-m", "testbed.results.reference").returncode == 0
    assert "- `device_macs`: multiply-accumulates of the rank with the most." in (copy / "docs/columns.md").read_text()


def test_the_methods_test_passes(copy: Path) -> None:
    done = python(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/methods/test_broadcast.py")
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


def test_the_topology_is_what_the_page_says(copy: Path) -> None:
    script = (
        "from testbed.config.load import load_config\n"
        "links = load_config(['+experiment=bandwidth_sweep', 'topology=two_rooms', 'devices=4']).topology.graph(4)\n"
        "print(links.subnets, links.suited, links.routes[0, 1], links.share['h0', 'd0'], links.share['d0', 'd1'])"
    )
    assert python(copy, "-c", script).stdout == "((0, 1), (2, 3)) hierarchical (('h0', 'h1'),) 0.5 0.1\n"


def test_the_pages_code_is_in_the_style_of_the_rest(copy: Path) -> None:
    files = [name for name in FILES if name.endswith(".py")] + [name for name, _, _ in INSERTIONS]
    for words in (["check", "--output-format=concise"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *words, *files], cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
