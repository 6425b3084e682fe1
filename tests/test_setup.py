"""What a bare clone relies on: pins, the Makefile's targets and the command of continuous integration."""

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from testbed.doctor import PYTHONS

ROOT = Path(__file__).parent.parent
TARGETS = (
    "help",
    "setup",
    "doctor",
    "test",
    "lint",
    "sweep",
    "smoke",
    "paper",
    "measured",
    "claims",
    "report",
    "bench",
    "soak",
    "docs",
    "clean",
)


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


def test_the_container_has_the_steps_of_make():
    """The image is not built in tests, which have no container engine; its packages and steps are those of make."""
    makefile, steps = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    (packages,) = re.findall(r"^DEBIAN := (.*)$", makefile, re.MULTILINE)
    (installed,) = re.findall(r"apt-get install --no-install-recommends -y (.*) \\$", steps, re.MULTILINE)
    assert set(packages.split()) <= set(installed.split())
    assert "RUN make setup\n" in steps


def test_the_range_of_pythons_is_the_same_everywhere():
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    (first, last) = (".".join(map(str, version)) for version in PYTHONS)
    assert requires == f">={first},<3.{PYTHONS[1][1] + 1}"
    assert f"not Python {first} to {last}" in (ROOT / "Makefile").read_text()
    assert f"Python {first} to {last}" in (ROOT / "README.md").read_text()


def test_another_python_is_refused_first_with_the_reason(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "-o", "debian", f"PYTHON={python}", f"READY={tmp_path}/ready", f"{tmp_path}/ready"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "torch and Ray have builds" in done.stderr


def test_every_release_of_the_first_python_will_do():
    """Debian 12 has Python 3.11.2. A pin that needs 3.11.5 would stop `make setup` there."""
    first = Version(".".join(map(str, PYTHONS[0])) + ".0")
    needs = {name: metadata.metadata(name)["Requires-Python"] for name in pins() if installed(name)}
    assert len(needs) > 100
    assert {name: need for name, need in needs.items() if need and first not in SpecifierSet(need)} == {}


def installed(name):
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
