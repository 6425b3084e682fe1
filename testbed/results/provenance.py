"""How a run was made: code, packages, machine and command line, for its manifest."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from testbed.limits import usable_cores

ROOT = Path(__file__).resolve().parents[2]
# The code hash covers these folders, except modules that no measurement imports.
HASHED_FOLDERS = ("testbed", "experiments", "topologies")
UNHASHED_MODULES = (
    "experiments/benchmarks/",
    "experiments/paper.py",
    "testbed/config/reference.py",
    "testbed/results/reference.py",
)
PACKAGES = ["torch", "numpy", "ray", "pandas", "pyarrow", "hydra-core", "omegaconf", "mininet"]


def short_hash(value: object) -> str:
    """A hash of ten hexadecimal digits. The value must be JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def code_hash() -> str:
    """A short hash of all source code that can change a measurement, committed or not.

    Hidden files are left out: editors put locks and copies of open files beside them, which no measurement imports.
    """
    files = sorted(path for folder in HASHED_FOLDERS for path in (ROOT / folder).rglob("[!.]*.py"))
    names = {path.relative_to(ROOT).as_posix(): path for path in files}
    return short_hash(
        [[name, path.read_text("utf-8")] for name, path in names.items() if not name.startswith(UNHASHED_MODULES)]
    )


def provenance() -> dict[str, Any]:
    """Code, packages, machine and command line of this run. Nothing identifies the user or the host."""
    return {
        "git_sha": _git("rev-parse", "HEAD").strip() or None,
        "git_dirty_hash": _dirty_hash(),
        "code_hash": code_hash(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "argv": sys.argv[1:],
    }


def _git(*arguments: str) -> str:
    """Output of git in the source tree. It is empty without git or without a repository."""
    command, folder = ["git", *arguments], Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=True)
        return done.stdout.decode("utf-8", "surrogateescape")  # a difference holds whatever bytes files hold
    except (OSError, subprocess.CalledProcessError):
        return ""


def _dirty_hash() -> str | None:
    """A hash of all differences from the commit, with new source files. None if there are none."""
    top = Path(_git("rev-parse", "--show-toplevel").strip())
    # -z: without it, git writes names that are not ASCII in quotes.
    new = _git("ls-files", "-z", "--others", "--exclude-standard", "--full-name", ":/*.py", ":/*.yaml").split("\0")
    contents = {name: _content_hash(top / name) for name in filter(None, new)}
    diff = _git("diff", "HEAD")
    return short_hash([diff, contents]) if diff or contents else None


def _content_hash(path: Path) -> str | None:
    """A hash of a file. None if it cannot be read, as a link to a file that does not exist."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
