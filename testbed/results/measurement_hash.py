"""The measurement hash: the code and the settings files that can change a measured number, as one short hash.

It covers the modules that a run imports, from ``testbed.run``, the runner and the methods on, without UNMEASURED. Of
each module it covers the syntax tree: comments, docstrings, layout and imports for type checkers do not count. It also
covers the content of the files in conf/ that describe devices, models, methods, links and data of the run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from testbed.results.provenance import short_hash

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("testbed", "experiments", "topologies")
CONFIGURATION = "it reads or refuses a configuration; the manifest holds what was read, and the signature is of it"
DECLARATION = "it declares names, types, limits and meanings of columns; no number is computed from them"
RECORD = "it records how a run was made, or whether rows may be added; no row depends on the record"
MESSAGES = "it holds texts and exit codes"
# Modules that a run imports although they cannot change a number -> why they cannot.
UNMEASURED = {
    "testbed.errors": MESSAGES,
    "testbed.command": MESSAGES,
    "testbed.progress": MESSAGES,
    "testbed.config.compose": CONFIGURATION,
    "testbed.config.contents": CONFIGURATION,
    "testbed.config.cross_checks": CONFIGURATION,
    "testbed.config.files": CONFIGURATION,
    "testbed.config.load": CONFIGURATION,
    "testbed.config.origins": CONFIGURATION,
    "testbed.config.paths": CONFIGURATION,
    "testbed.config.words": CONFIGURATION,
    "testbed.results.column": DECLARATION,
    "testbed.results.accuracy_columns": DECLARATION,
    "testbed.results.disturbance_columns": DECLARATION,
    "testbed.results.latency_columns": DECLARATION,
    "testbed.results.link_columns": DECLARATION,
    "testbed.results.segment_columns": DECLARATION,
    "testbed.results.measurement_hash": RECORD,
    "testbed.results.provenance": RECORD,
    "experiments.measurement.manifest": RECORD,
}
TYPES_ONLY = "TYPE_CHECKING"


def measurement_hash(config: Mapping[str, Any]) -> str:
    """The hash for a run with this configuration, in the form that its manifest holds (nested dictionaries and lists).

    Sections that the configuration lacks are left out, so a configuration of another version has some other hash.
    """
    code = {name: _read(path)[0] for name, path in measuring_modules(roots(config)).items()}
    return short_hash([code, {path: _content(ROOT / path) for path in settings_files(config)}])


def roots(config: Mapping[str, Any]) -> list[str]:
    """The modules that a run starts with: the command, its runner, and its methods, which are imported by name."""
    methods = [f"testbed.methods.{name}" for name in _names(config.get("methods"))]
    return ["testbed.run", *(f"experiments.{name}" for name in _names(config.get("runner"))), *methods]


def measuring_modules(start: Iterable[str]) -> dict[str, Path]:
    """Name -> file of all modules of the project that these modules import, with themselves, without UNMEASURED.

    A text that is the name of a module counts as an import: subprocesses are started by such names.
    """
    found: dict[str, Path] = {}
    pending = list(start)
    while pending:
        name = pending.pop()
        path = None if name in found or name in UNMEASURED else _file(name)
        if path is None:
            continue
        found[name] = path
        pending += [name.rpartition(".")[0], *_read(path)[1]]
    return dict(sorted(found.items()))


def settings_files(config: Mapping[str, Any]) -> list[str]:
    """Paths in the project of the files in conf/ that describe what a run uses, whether they exist or not."""
    chosen = {
        "data": _names(_entry(config, "data", "name")),
        "device": {*_names(_entry(config, "device", "name")), *_names(config.get("profiles"))},
        "method": _names(config.get("methods")),
        "model": _names(_entry(config, "model", "name")),
        "network": _names(_entry(config, "network", "backend")),
        "topology": _names(_entry(config, "topology", "name")),
    }
    return sorted(f"conf/{group}/{name}.yaml" for group, names in chosen.items() for name in names)


def _entry(config: Mapping[str, Any], section: str, key: str) -> object:
    found = config.get(section)
    return found.get(key) if isinstance(found, Mapping) else None


def _names(value: object) -> list[str]:
    """The names in a value: a text is one, a list or a mapping may hold several. Others are no names of files here."""
    found = [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple | Mapping) else []
    return [name for name in found if isinstance(name, str) and name.isidentifier()]


def _file(module: str) -> Path | None:
    """The file of a module of the project, or None."""
    parts = module.split(".")
    if parts[0] not in FOLDERS or not all(part.isidentifier() for part in parts):
        return None
    path = ROOT.joinpath(*parts)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file()), None)


def _content(path: Path) -> object:
    """What a file of conf/ holds, without its comments; None if there is none or it cannot be read."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, OmegaConfBaseException):  # a profile of one's own may be gone
        return None


def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """(hash of the syntax tree, names that may be modules) of a source file."""
    status = path.stat()
    return _parsed(path, status.st_mtime_ns, status.st_size)


@cache
def _parsed(path: Path, _changed_ns: int, _size: int) -> tuple[str, tuple[str, ...]]:
    tree = ast.parse(path.read_bytes())
    return short_hash(_canonical(tree)), tuple(dict.fromkeys(_imports(tree)))


def _imports(tree: ast.Module) -> Iterator[str]:
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            yield node.value
        pending += [child for child in ast.iter_child_nodes(node) if not _does_nothing(child)]


def _canonical(node: object) -> object:
    """A syntax tree as nested lists, the same with every version of Python, without what does nothing."""
    if isinstance(node, ast.AST):
        # Versions differ in which empty fields they have.
        fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
        return [type(node).__name__, *([name, _canonical(value)] for name, value in fields if name != "kind")]
    if isinstance(node, list):
        return [_canonical(item) for item in node if not _does_nothing(item)]
    return repr(node)


def _does_nothing(node: object) -> bool:
    """Whether a statement is a text alone, as a docstring is, or imports for type checkers alone."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == TYPES_ONLY
