"""Private names of torch and Ray: each is known, exists in the installed version, and that version is bounded.

A package may change a private name in any release. A run that used it would then fail in the middle, or measure
something else. So every one is listed here, and pyproject.toml bounds its package on both sides.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "ray")
# keyword of ray.init -> why no public one does
KEYWORDS = {
    "_node_ip_address": "the driver's address; Ray would look for one by a route to the internet, which no host has",
}
# module that is not part of the public interface -> why it is used
MODULES = {"ray.scripts.scripts": "`ray start`, for the interpreter of this run and not whichever comes first in PATH"}
# option of `ray start` that its help does not show -> what it prevents
HIDDEN_OPTIONS = {
    "--include-log-monitor": "a process that reads logs on each host",
    "--no-monitor": "a process that asks for more nodes",
}
BOUNDED = ("torch", "ray", "mininet")


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("testbed", "experiments", "analysis", "topologies"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text("utf-8"))


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (outer := dotted(node.value)):
        return f"{outer}.{node.attr}"
    return ""


def is_private(name: str) -> bool:
    parts = name.split(".")
    return parts[0] in PACKAGES and any(part.startswith("_") and not part.startswith("__") for part in parts)


def private_names(tree: ast.Module) -> Iterator[str]:
    """Names of modules and attributes of the packages, and keywords of calls to them, that begin with one _."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module:
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name for name in full if is_private(name))
        elif isinstance(node, ast.Attribute) and is_private(dotted(node)):
            yield dotted(node)
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[0] in PACKAGES:
            yield from (word.arg for word in node.keywords if word.arg and word.arg.startswith("_"))


def test_every_private_name_is_known() -> None:
    found = {name: path.relative_to(ROOT) for path, tree in sources() for name in private_names(tree)}
    assert found.keys() == KEYWORDS.keys(), f"{found}: use a public name, or list it here with the reason"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import torch._dynamo", "torch._dynamo"),
        ("from ray._private import worker", "ray._private.worker"),
        ("from torch.utils import _pytree", "torch.utils._pytree"),
        ("torch._C._log_api_usage_once('x')", "torch._C._log_api_usage_once"),
        ("ray.init(_temp_dir='x')", "_temp_dir"),
    ],
)
def test_each_kind_of_private_name_is_found(line: str, name: str) -> None:
    assert name in set(private_names(ast.parse(line)))
    assert not set(private_names(ast.parse("import torch\ntorch.nn.Linear.__init__\nself._x = ray.get(y)")))


def test_the_installed_version_has_every_private_name() -> None:
    import ray
    from ray.scripts.scripts import start

    source = inspect.getsource(inspect.unwrap(ray.init))
    for keyword in KEYWORDS:
        assert f'"{keyword}"' in source or keyword in inspect.signature(ray.init).parameters, (
            f"ray {ray.__version__} has no {keyword} in ray.init: see testbed/cluster/nodes.py, and bound ray below it"
        )
    options = {option for parameter in start.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert HIDDEN_OPTIONS.keys() <= options, (
        f"ray {ray.__version__} has no option {sorted(HIDDEN_OPTIONS.keys() - options)} of `ray start`: "
        "see testbed/cluster/nodes.py, and bound ray below it"
    )
    used = (ROOT / "testbed" / "cluster" / "nodes.py").read_text("utf-8")
    assert all(name in used for name in (*KEYWORDS, *MODULES, *HIDDEN_OPTIONS)), "no longer used: remove it here"


@pytest.mark.parametrize("package", BOUNDED)
def test_the_package_is_bounded_on_both_sides(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (bounds,) = (line for line in project["dependencies"] if re.match(rf"{package}\b", line))
    assert ">=" in bounds and ",<" in bounds, f"{bounds}: private names of {package} are used, so bound its releases"
