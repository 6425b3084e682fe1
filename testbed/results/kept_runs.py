"""The runs whose rows are kept in the repository: docs/measured/runs.yaml, and whether today's code measured them.

A kept folder has results.csv and manifest.json. Each entry of the manifest has the measurement hash of the code that
measured; entries of earlier versions have none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from testbed.errors import ConfigError, TestbedError, nearest, reason
from testbed.results.measurement_hash import ROOT, measurement_hash

LIST = Path("docs/measured/runs.yaml")  # in the project
KINDS = ("latency", "links", "accuracy", "perplexity")


@dataclass(frozen=True)
class KeptRun:
    """One kept run. kind: of KINDS. words: of its command. minutes: on two cores. about: what its rows show, or ''."""

    name: str
    kind: str
    folder: str
    words: tuple[str, ...]
    minutes: float
    about: str = ""

    @property
    def path(self) -> Path:
        """The folder of its kept rows."""
        return ROOT / self.folder


def kept_runs(path: Path | None = None) -> dict[str, KeptRun]:
    """Name -> run, in the order in which they are measured. Raises ConfigError for an entry that cannot be."""
    listed = yaml_data(path or ROOT / LIST)
    if not isinstance(listed, list):
        raise ConfigError("runs", type(listed).__name__, "must be a list", str(path or LIST))
    runs: dict[str, KeptRun] = {}
    for number, entry in enumerate(listed):
        run = _run(entry, f"runs[{number}]", str(path or LIST))
        if run.name in runs:
            raise ConfigError(f"runs[{number}].name", run.name, "must be used once", str(path or LIST))
        runs[run.name] = run
    return runs


def _run(entry: object, key: str, where: str) -> KeptRun:
    names = {field.name for field in fields(KeptRun)} - {"folder"}
    needed = names - {"about"}
    if not isinstance(entry, Mapping) or not needed <= set(entry) <= names | {"folder"}:
        found = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else entry
        raise ConfigError(
            key, found, f"needs the keys {', '.join(sorted(needed))}; about and folder are optional", where
        )
    entry = {"about": "", "folder": f"docs/measured/{entry['name']}", **entry}
    if entry["kind"] not in KINDS:
        raise ConfigError(f"{key}.kind", entry["kind"], nearest(str(entry["kind"]), KINDS), where)
    words = entry["words"]
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{key}.words", words, "must be a list of texts KEY=VALUE", where)
    minutes = entry["minutes"]
    if not isinstance(minutes, int | float) or isinstance(minutes, bool) or not 0 < minutes < 10_000:
        raise ConfigError(f"{key}.minutes", minutes, "must be a number above 0", where)
    texts = {name: str(entry[name]).strip() for name in ("name", "kind", "folder", "about")}
    return KeptRun(words=tuple(words), minutes=float(minutes), **texts)


def yaml_data(path: Path) -> Any:
    """The data of a YAML file; references are not resolved. Raises TestbedError for a file that cannot be read."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise TestbedError(f"{path} cannot be read: {reason(error)}") from None
    except Exception as error:  # OmegaConf's own, and those of its parser
        raise TestbedError(f"{path} is no YAML data: {error}") from None


def earlier_revision(folder: Path) -> str:
    """When rows of a folder were measured, as 2026-10-01, if other code than today's measured any of them; else ''.

    ``unknown date`` where the manifest is missing, damaged or without a date.
    """
    try:
        entries = json.loads((folder / "manifest.json").read_text("utf-8"))["runs"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        entries = []
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        entries = []
    if entries and all(is_current(entry) for entry in entries):
        return ""
    dates = [entry["started"][:10] for entry in entries if isinstance(entry.get("started"), str)]
    return max(dates, default="unknown date")


def is_current(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of a manifest is of a run with today's code and settings files."""
    config, measured_with = entry.get("config"), entry.get("measurement_hash")
    return isinstance(config, Mapping) and bool(measured_with) and measured_with == measurement_hash(config)
