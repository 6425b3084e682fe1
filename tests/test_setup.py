"""What a bare clone relies on: pins, the Makefile's targets and the command of continuous integration."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TARGETS = ("help", "setup", "test", "lint", "sweep", "smoke", "paper", "report", "bench", "soak", "docs", "clean")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    return {canonical(name): version for name, version in (line.split("==") for line in lines)}


def test_torch_is_pinned_to_the_plain_release():
    assert pins()["torch"] == "2.13.0"
    assert "install torch==2.13.0\n" in (ROOT / "Makefile").read_text()


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = [canonical(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in wanted]
    assert len(names) > 15
    assert [name for name in names if name not in pins()] == []


def test_help_is_the_default_and_lists_every_target():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [target for target in TARGETS if f"make {target} " not in shown] == []


@pytest.mark.parametrize("name", ["sweep", "smoke"])
def test_experiment_targets_name_experiments_that_exist(name):
    makefile = (ROOT / "Makefile").read_text()
    (experiment,) = re.findall(rf"^{name}: .*\n.*\+experiment=(\w+)", makefile, re.MULTILINE)
    assert (ROOT / "conf" / "experiment" / f"{experiment}.yaml").is_file()


def test_continuous_integration_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[-1] == "exec make test"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt", "requirements-data.txt", "Makefile", ".ci/run"])
def test_packages_come_from_wherever_the_user_has_set_up(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"--(extra-)?index-url|--find-links|(^|\s)-[if]\s*http|--trusted-host", text)
