"""Imports go one way: a package imports only packages that stand before it in ORDER, by the code's own imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the lowest package to the highest. A module belongs to the longest name that its own name begins with.
PACKAGES = """
testbed.errors testbed.limits testbed.user_files testbed.git_lfs testbed.command testbed.progress testbed.output
testbed.results testbed.device testbed.comm topologies testbed.network
testbed.models testbed.datasets testbed.astra
testbed.compressed_collectives testbed.methods
testbed.config testbed.grid testbed.cluster testbed.session testbed.doctor
analysis
experiments.cost_model experiments.measurement experiments
testbed.run
"""
ORDER = PACKAGES.split()
# Narrower than the order: what a package may import of those before it.
ONLY = {
    "testbed.comm": {"testbed.errors", "testbed.device"},  # so no models
    # So no devices, transport or methods.
    "testbed.models": {"testbed.errors", "testbed.user_files", "testbed.git_lfs", "testbed.results"},
    "analysis": {"testbed.errors", "testbed.command", "testbed.progress", "testbed.results"},  # it reads files
}
# Who may import the analysis: what ends a run with a report, and benchmarks, which read the rows of their runs.
READERS = ("testbed.run", "experiments.paper", "experiments.benchmarks")
COMMAND = "testbed.run"
STARTERS = ("experiments.paper", "experiments.measured")  # take exit codes and folders from it; it is their child


def package(module: str) -> str:
    fitting = [name for name in ORDER if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len, default="")


def imports(source: str) -> Iterator[str]:
    """Modules, and names in modules, that a source imports anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(module: str, source: str) -> list[str]:
    """What ``module`` imports against the order, as ``module -> imported``."""
    own, wrong = package(module), []
    for imported in imports(source):
        other = package(imported)
        if other in ("", own):
            continue
        allowed = ORDER.index(other) < ORDER.index(own) and other in ONLY.get(own, {other})
        if other == "analysis":
            allowed = module.startswith(READERS)
        if other == COMMAND:
            allowed = module in STARTERS
        if not allowed:
            wrong.append(f"{module} -> {imported}")
    return wrong


def modules() -> Iterator[tuple[str, str]]:
    """(name, source) of every module of the project."""
    for folder in ("testbed", "topologies", "analysis", "experiments"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts), path.read_text()


def test_imports_go_one_way() -> None:
    found = dict(modules())
    assert len(found) > 140
    assert [arrow for name, source in found.items() for arrow in wrong_imports(name, source)] == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("testbed.models.vit", "from testbed.methods.tensor import TensorParallel"),
        ("testbed.models.vit", "from testbed.device.clock import DeviceClock"),
        ("testbed.comm.tcp", "from testbed.models.vit import VisionTransformer"),
        ("testbed.astra.shard", "from testbed.methods.base import Method"),
        ("testbed.methods.ring", "import testbed.cluster.worker"),
        ("testbed.cluster.worker", "def late():\n    from testbed.session import Session"),
        ("testbed.session", "from experiments import latency"),
        ("testbed.grid", "from analysis.load import load_rows"),
        ("analysis.load", "from testbed.config.schema import Config"),
        ("analysis.paper.table", "from experiments.paper import main"),
        ("experiments.cost_model.analytic", "from experiments.measurement.manifest import Manifest"),
        ("experiments.latency", "from analysis.load import load_rows"),
    ],
)
def test_an_import_against_the_order_is_found(module: str, line: str) -> None:
    source = dict(modules())[module]
    assert not wrong_imports(module, source)
    assert len(wrong_imports(module, f"{source}\n{line}\n")) == 1


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    lengths = {name: source.count("\n") for name, source in modules()}
    assert {name: lines for name, lines in lengths.items() if lines > 300} == {}
