"""docs/configuration.md, made of conf/ (defaults, comments) and the schema (rules).

``python -m testbed.config.reference`` writes it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from testbed.config.fields import CONF, ROOT, choices
from testbed.config.schema import SCHEMAS, Config
from testbed.results.atomic_write import replacing

DOCUMENT = ROOT / "docs" / "configuration.md"
COMMENT = re.compile(r"^(\w+):.*?\s# (.*)$", re.MULTILINE)
GROUPS = {  # in conf/, in the order of the page: how one is chosen, what it is
    "experiment": ("+experiment=NAME", "what to measure"),
    "model": ("model=NAME", "what is inferred"),
    "device": ("device=NAME", "the emulated device"),
    "topology": ("topology=NAME", "how devices are linked"),
    "network": ("network=NAME", "what emulates the links"),
    "data": ("data=NAME", "pictures of the accuracy experiments"),
    "method": ("methods=[NAME,...]", "how inference is split"),
}
INTRODUCTION = """# Every key

Made by `make docs` from `conf/` and `testbed/config/schema.py`; a test fails when it is not current.

`python -m testbed.run +experiment=NAME KEY=VALUE ...` takes any key; a list `[a,b]` is an axis of the grid. `--cfg job`
shows what a command would run, `--help` the defaults. A value that cannot be used ends the run with the key, the value
and what is allowed.
"""


def document() -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## Choices\n"]
    for group, (how, what) in GROUPS.items():
        parts.append(f"### `{how}`: {what}\n")
        rows = [[f"`{name}`", _heading(_file(group, name))] for name in choices(group)]
        parts.append(_table(["name", "what it is"], rows))
    parts.append("## Keys of every experiment\n")
    parts.append(_keys(Config, [CONF / "config.yaml"], set()))
    common = {field.name for field in dataclasses.fields(Config)}
    for schema in dict.fromkeys(SCHEMAS.values()):
        runners = [name for name, other in SCHEMAS.items() if other is schema]
        parts.append(f"## Keys of experiments with runner {' or '.join(f'`{name}`' for name in runners)}\n")
        parts.append(_keys(schema, [_file("runner", name) for name in reversed(runners)], common))
    parts.append("## Settings of methods\n")
    parts.append(_table(["key", "default", "meaning"], list(_method_settings())))
    return "\n".join(parts)


def _file(group: str, name: str) -> Path:
    return CONF / group / f"{name}.yaml"


def _heading(path: Path) -> str:
    """The comment that a file begins with, on one line."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines += [] if line.startswith("# @package") else [line.lstrip("# ")]
    return " ".join(lines)


def _keys(schema: type[Config], files: list[Path], without: set[str]) -> str:
    """Key, default, what is allowed and what the files' comments say, of a schema's own keys."""
    defaults: dict[str, Any] = {}
    comments: dict[str, str] = {}
    for path in files:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(loaded, dict)
        defaults |= {str(key): value for key, value in loaded.items()}
        comments |= dict(COMMENT.findall(path.read_text()))
    rows = list(_rows(schema, "", defaults, comments, without | {"settings", "profiles", "runner"}))
    return _table(["key", "default", "allowed", "meaning"], rows)


def _rows(
    section: Any, prefix: str, defaults: dict[str, Any], comments: dict[str, str], without: set[str]
) -> Iterator[list[str]]:
    kinds = get_type_hints(section)
    for field in dataclasses.fields(section):
        kind, key = kinds[field.name], f"{prefix}{field.name}"
        if field.name in without and not prefix:
            continue
        if dataclasses.is_dataclass(kind):
            given = defaults.get(field.name)
            yield from _rows(kind, f"{key}.", given if isinstance(given, dict) else {}, comments, without)
        else:
            comment = "" if prefix else comments.get(field.name, "")
            yield [f"`{key}`", _default(defaults, field.name, prefix), field.metadata.get("allowed", ""), comment]


def _default(defaults: dict[str, Any], name: str, prefix: str) -> str:
    if name not in defaults:
        return "of the choice" if prefix else "of the experiment"
    value = defaults[name]
    if value == "???":
        return "of the experiment"
    return f"`{_plain(value)}`" if value != "" else "empty"


def _plain(value: Any) -> str:
    """As a user would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(_plain, value))}]" if isinstance(value, list) else str(value)


def _method_settings() -> Iterator[list[str]]:
    for name in choices("method"):
        path = _file("method", name)
        comments = dict(COMMENT.findall(path.read_text()))
        settings = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(settings, dict)
        for key, value in settings.items():
            yield [f"`{name}.{key}`", f"`{_plain(value)}`", comments.get(str(key), "")]


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def main() -> None:
    """Write the page."""
    with replacing(DOCUMENT) as path:
        path.write_text(document())
    print(DOCUMENT.relative_to(ROOT))


if __name__ == "__main__":
    main()
