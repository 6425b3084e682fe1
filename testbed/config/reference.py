"""docs/configuration.md, generated from conf/ (defaults, comments) and the schema (allowed values).

``python -m testbed.config.reference`` writes it.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from omegaconf import OmegaConf

from testbed.command import run_command
from testbed.config.fields import CONF, ROOT, choices
from testbed.config.schema import SCHEMAS, Config
from testbed.results.atomic_write import replacing

WIDTH = 120
DOCUMENT = ROOT / "docs" / "configuration.md"
COMMENT = re.compile(r"^(\w+):.*?\s# (.*)$", re.MULTILINE)
GROUPS = {  # groups of conf/ in the order of the page: how a choice is written, what the group holds
    "experiment": ("+experiment=NAME", "what to measure"),
    "model": ("model=NAME", "the model of an inference"),
    "device": ("device=NAME", "the emulated device"),
    "topology": ("topology=NAME", "the links between devices"),
    "network": ("network=NAME", "what emulates the links"),
    "data": ("data=NAME", "images and texts of the accuracy experiments"),
    "method": ("methods=[NAME,...]", "how one inference is divided among devices"),
}
INTRODUCTION = """# Every key

`make docs` generates this page from `conf/` and `testbed/config/schema.py`. A test fails if the page is out of date.

`python -m testbed.run +experiment=NAME KEY=VALUE ...` accepts every key on this page. A list `[a,b]` asks for several
values. Keys with the mark *list* accept it, and so do all settings of methods. A value that is not allowed ends the
run; the message names the key, the value and what is allowed.

In a shell, a word with brackets needs quotes: `'devices=[2,4]'`. A folder, a file or a name is taken as it is typed,
whatever its characters are; quotes around all of it are removed. `~` at the beginning of a folder or file is the home
folder. In files, write numbers in decimal digits, `true` or `false`, and texts in quotes where YAML would read them as
something else: `010` is 8 in YAML, and such values are refused.

The default of a key is in parentheses. *set by the experiment* and *set by the choice* mean that the chosen file holds
the value. `--cfg job` shows what a command would run. `--help` shows all defaults.
"""


def document() -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## Choices\n"]
    for group, (how, what) in GROUPS.items():
        parts.append(f"### `{how}`: {what}\n")
        parts.append(_list([f"`{name}`", "", "", _heading(_file(group, name))] for name in choices(group)))
    parts.append("## Keys of every experiment\n")
    parts.append(_keys(Config, [CONF / "config.yaml"], set()))
    common = {field.name for field in dataclasses.fields(Config)}
    for schema in dict.fromkeys(SCHEMAS.values()):
        runners = [name for name, other in SCHEMAS.items() if other is schema]
        parts.append(f"## Keys of experiments with runner {' or '.join(f'`{name}`' for name in runners)}\n")
        parts.append(_keys(schema, [_file("runner", name) for name in reversed(runners)], common))
    parts.append("## Settings of methods\n")
    parts.append(_list(_method_settings()))
    return "\n".join(parts)


def _file(group: str, name: str) -> Path:
    return CONF / group / f"{name}.yaml"


def _heading(path: Path) -> str:
    """The first paragraph of the comment that a file begins with, on one line; an empty comment line ends it."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#") or line.strip() == "#":
            break
        lines += [] if line.startswith("# @package") else [line.lstrip("# ")]
    return " ".join(lines)


def _keys(schema: type[Config], files: list[Path], without: set[str]) -> str:
    """The list of a schema's own keys, with defaults, allowed values and the comments of the files."""
    defaults: dict[str, Any] = {}
    comments: dict[str, str] = {}
    for path in files:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(loaded, dict)
        defaults |= {str(key): value for key, value in loaded.items()}
        comments |= dict(COMMENT.findall(path.read_text()))
    return _list(_rows(schema, "", defaults, comments, without | {"settings", "profiles", "runner"}))


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
            default = _default(defaults, field.name, prefix) + ("; *list*" if get_origin(kind) is list else "")
            yield [f"`{key}`", default, field.metadata.get("allowed", ""), comment]


def _default(defaults: dict[str, Any], name: str, prefix: str) -> str:
    if name not in defaults:
        return "set by the choice" if prefix else "set by the experiment"
    value = defaults[name]
    if value == "???":
        return "set by the experiment"
    return f"`{_plain(value)}`" if value != "" else "empty"


def _plain(value: Any) -> str:
    """The value as a user would write it on the command line."""
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
            yield [f"`{name}.{key}`", f"`{_plain(value)}`", "", comments.get(str(key), "")]


def _list(items: Iterable[list[str]]) -> str:
    """A Markdown list with one item for each key. It is not a table because lines of a table cannot be wrapped."""
    lines = []
    for name, default, allowed, meaning in items:
        text = f"- {name}" + (f" ({default})" if default else "")
        parts = [_sentence(meaning), _sentence(f"Allowed: {allowed}" if allowed else "")]
        text += f": {' '.join(filter(None, parts))}" if any(parts) else ""
        lines.append(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    return "\n".join(lines) + "\n"


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "?")) else f"{text}."


def main() -> int:
    """Write the page. Returns the exit code."""
    with replacing(DOCUMENT) as path:
        path.write_text(document(), "utf-8")
    print(DOCUMENT.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("configuration", main))
