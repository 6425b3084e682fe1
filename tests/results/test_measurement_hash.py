from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from testbed.results import measurement_hash as module
from testbed.results.column import Column
from testbed.results.measurement_hash import (
    CONFIGURATION,
    DECLARATION,
    MESSAGES,
    RECORD,
    UNMEASURED,
    measurement_hash,
    measuring_modules,
    roots,
    settings_files,
)
from tests.test_imports import imports

ROOT = Path(__file__).parents[2]
LATENCY = {
    "runner": "latency",
    "methods": ["single", "prism"],
    "device": {"name": "gtx1660ti"},
    "profiles": {},
    "model": {"name": "vit_base"},
    "network": {"backend": "mininet"},
    "topology": {"name": "star"},
}
ACCURACY = {"runner": "accuracy_vit", "data": {"name": "fashion_mnist"}, "model": {"name": "vit_tiny"}}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's code, settings and pages; the hash is of this copy."""
    for name in ("testbed", "experiments", "topologies", "analysis", "conf", "docs/decisions"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    before = measurement_hash(LATENCY)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    assert measurement_hash(LATENCY) == before, "the hash depends on where the project lies"
    return tmp_path


def changed(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("testbed/comm/tcp.py", True),
        ("testbed/network/init.py", True),  # started by its name
        ("testbed/methods/prism.py", True),  # imported by its name
        ("testbed/methods/galaxy.py", False),  # a method that the run does not use
        ("testbed/results/schema.py", True),
        ("experiments/measurement/calibration.py", True),
        ("topologies/link_graph.py", True),
        ("experiments/accuracy_vit.py", False),  # another runner
        ("experiments/benchmarks/soak.py", False),
        ("experiments/benchmarks/instrument.py", False),
        ("experiments/paper.py", False),
        ("experiments/measured.py", False),
        ("testbed/doctor.py", False),
        ("testbed/errors.py", False),
        ("testbed/config/reference.py", False),
        ("testbed/results/reference.py", False),
        ("testbed/results/latency_columns.py", False),
        ("analysis/points.py", False),
    ],
)
def test_only_code_that_measures_counts(name: str, counts: bool, project: Path) -> None:
    before = measurement_hash(LATENCY)
    with (project / name).open("a") as source:
        source.write("\nADDED = 1\n")
    assert (measurement_hash(LATENCY) != before) == counts


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("conf/device/gtx1660ti.yaml", True),
        ("conf/model/vit_base.yaml", True),
        ("conf/method/prism.yaml", True),
        ("conf/topology/star.yaml", True),
        ("conf/device/half_gtx1660ti.yaml", False),
        ("conf/method/tensor.yaml", False),
        ("README.md", False),
        ("docs/decisions/0001-shaping.md", False),
    ],
)
def test_only_settings_of_the_run_count(name: str, counts: bool, project: Path) -> None:
    before = measurement_hash(LATENCY)
    with (project / name).open("a") as file:
        file.write("\nadded: 1\n")
    assert (measurement_hash(LATENCY) != before) == counts


def test_a_changed_constant_counts_and_words_do_not(project: Path) -> None:
    clock, device = project / "testbed/device/clock.py", project / "conf/device/gtx1660ti.yaml"
    before = measurement_hash(LATENCY)
    clock.write_text(f"# A comment.\n\n{clock.read_text()}", "utf-8")
    docstring = clock.read_text().split('"""')[1]
    changed(clock, docstring, "Another docstring.\n\nWith a second paragraph.\n")
    device.write_text(f"# A comment.\n{device.read_text()}")
    assert measurement_hash(LATENCY) == before
    changed(device, "reference_s: 0.350", "reference_s: 0.351")
    after = measurement_hash(LATENCY)
    assert after != before
    clock.write_text(f"{clock.read_text()}\nLIMIT_S = 0.002\n")
    constant = measurement_hash(LATENCY)
    changed(clock, "LIMIT_S = 0.002", "LIMIT_S = 0.003")
    assert len({before, after, constant, measurement_hash(LATENCY)}) == 4


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (
            "def f(a):\n    '''Doc.'''\n    return a + 1\n",
            "def f(a):  # comment\n\n    return (a +\n            1)\n",
            True,
        ),
        ("class A:\n    '''Doc.'''\n    b = 1\n", "class A:\n    b = 1\n", True),
        ("if TYPE_CHECKING:\n    import torch\nx = 1\n", "x = 1\n", True),
        ("x = 1\n", "x = 2\n", False),
        ("x = 1\n", "x = 1.0\n", False),
        ("x = 'a'\n", "x = b'a'\n", False),
        ("x = a - b\n", "x = b - a\n", False),
        ("def f(a=1): pass\n", "def f(a=2): pass\n", False),
        ("x = f'{a:.1f}'\n", "x = f'{a:.2f}'\n", False),
    ],
)
def test_the_syntax_tree_is_what_counts(
    one: str, other: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = set()
    for name, source in (("one", one), ("other", other)):
        path = tmp_path / name / "testbed" / "run.py"
        path.parent.mkdir(parents=True)
        path.write_text(source, "utf-8")
        monkeypatch.setattr(module, "ROOT", tmp_path / name)
        hashes.add(measurement_hash({}))
    assert (len(hashes) == 1) == same


def test_each_runner_has_code_of_its_own() -> None:
    latency, accuracy = (measuring_modules(roots(config)) for config in (LATENCY, ACCURACY))
    assert {"experiments.latency", "testbed.methods.prism", "testbed.cluster.worker"} <= set(latency)
    assert {"experiments.accuracy_vit", "testbed.results.intervals", "testbed.datasets.images"} <= set(accuracy)
    assert "testbed.cluster.worker" not in accuracy and "testbed.datasets.images" not in latency
    assert settings_files(ACCURACY) == ["conf/data/fashion_mnist.yaml", "conf/model/vit_tiny.yaml"]
    assert all((ROOT / path).exists() for path in settings_files(LATENCY))


def test_a_manifest_of_strangers_names_no_other_files() -> None:
    strange: dict[str, Any] = {"runner": "../../secret", "methods": 3, "device": {"name": "../x"}, "model": "vit_base"}
    assert roots(strange) == ["testbed.run"] and settings_files(strange) == []
    assert measurement_hash(strange) == measurement_hash({})


# What a function of an excluded module may return to code that measures, without changing a number.
TEXTS = {"str", "None", "NoReturn", "bool", "int", "Console", "Iterator[Steps]", "Iterator[Callable[[int, int], None]]"}
TEXTS |= {"dict[str, Any]", "list[str]"}  # of records
CLASSES = ("Steps", "Manifest")  # without a method that returns a number
READERS = {"testbed.run", "testbed.grid", "testbed.config.schema", "testbed.config.device_mix"}


def taken(name: str) -> Iterator[tuple[str, str]]:
    """(module that measures, name in it) for everything that such modules import from an excluded module."""
    measuring = {**measuring_modules(roots(LATENCY)), **measuring_modules(roots(ACCURACY))}
    for importing, path in measuring.items():
        for imported in imports(path.read_text("utf-8")):
            if imported.startswith(f"{name}."):
                yield importing, imported.removeprefix(f"{name}.")


@pytest.mark.parametrize("name", UNMEASURED)
def test_an_excluded_module_hands_over_no_number(name: str) -> None:
    reason, source = UNMEASURED[name], import_module(name)
    uses = list(taken(name))
    if reason == CONFIGURATION:
        # Its values reach a measurement in the configuration alone, which the signature and the manifest hold.
        assert {importing for importing, _ in uses} <= READERS, uses
        return
    for _, attribute in uses:
        value = getattr(source, attribute)
        if inspect.isclass(value):
            handed = issubclass(value, (Exception, Column)) or value.__name__ in CLASSES
        elif callable(value):
            handed = str(inspect.signature(value).return_annotation) in TEXTS
        else:  # limits and choices of columns: a value outside fails the row
            handed = reason == DECLARATION or isinstance(value, str | tuple)
        assert handed, f"{name}.{attribute} may carry a number into a measurement"


def test_excluded_modules_exist() -> None:
    assert all((ROOT / f"{name.replace('.', '/')}.py").is_file() for name in UNMEASURED)
    assert set(UNMEASURED.values()) == {CONFIGURATION, DECLARATION, MESSAGES, RECORD}
