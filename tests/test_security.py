"""Nothing that is read (results, configuration, peers' messages) may become code: what could do so is listed here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for name in ("testbed", "experiments", "analysis", "topologies") for path in (ROOT / name).rglob("*.py")
]

MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml", "runpy", "hydra.utils"}
NAMES = {"eval", "exec", "compile", "__import__"}
# Ends of dotted names. torch.load and numpy.load can unpickle, instantiate calls what a configuration names.
METHODS = {"torch.load", "np.load", "numpy.load", "read_pickle", "os.system", "os.popen", "getoutput", "instantiate"}
METHODS |= {"getstatusoutput", "create_subprocess_shell", "import_module", "cmd"}  # cmd: the shell of a Mininet host
ARGUMENTS = {"shell": True, "allow_pickle": True, "weights_only": False}
SHELLS = {"sh", "bash", "/bin/sh", "/bin/bash"}

LEGITIMATE = {
    ("testbed/run.py", "importlib.import_module"): "config.runner: load_config allows names in conf/runner/ only",
    ("testbed/config/files.py", "yaml"): "yaml.compose with SafeLoader: it returns text and builds no objects",
    ("experiments/device_check.py", "yaml"): "YAMLError only, which a profile in the results may raise",
    ("testbed/methods/__init__.py", "importlib.import_module"): "the names of this package's own files only",
    ("testbed/network/mininet_nodes.py", "super().cmd"): "what Mininet's classes and this module pass on",
    ("testbed/network/mininet_nodes.py", "self.cmd"): "fixed commands, with names and addresses that Mininet passes on",
    ("testbed/network/sysctls.py", "sh"): "SCRIPT, fixed; names and values are arguments of it",
    ("testbed/network/sandbox.py", "sh"): "JANITOR, fixed; the folder is an argument of it",
    ("testbed/network/probe.py", "sh"): "a fixed script",
}


def risks(source: str) -> Iterator[str]:
    """What in this source turns data into code, or could."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            yield from sorted(names & (MODULES | METHODS))
        elif isinstance(node, ast.List | ast.Tuple):
            yield from (item.value for item in node.elts if isinstance(item, ast.Constant) and item.value in SHELLS)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in NAMES or any(name == end or name.endswith(f".{end}") for end in METHODS):
                yield name
            for argument in node.keywords:
                if argument.arg in ARGUMENTS and ast.unparse(argument.value) != str(not ARGUMENTS[argument.arg]):
                    yield f"{name}({argument.arg}={ast.unparse(argument.value)})"
            composed = node.args and not isinstance(node.args[0], ast.Constant)
            if "pandas" in source and name.endswith((".eval", ".query")) and composed:
                yield name  # an expression in a string


def test_what_could_run_data_is_known_and_has_a_reason() -> None:
    found = {(str(path.relative_to(ROOT)), risk) for path in SOURCES for risk in risks(path.read_text())}
    assert found == set(LEGITIMATE)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch as t, cloudpickle as c",
        "from hydra.utils import call",
        "from hydra import utils",
        "from yaml import load",
        "hydra.utils.instantiate(config)",
        "instantiate(config)",
        "eval(text)",
        "exec(text)",
        "builtins = __import__(name)",
        "torch.load(path)",
        "from torch import load",
        "numpy.load(path)",
        "pandas.read_pickle(path)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "subprocess.run(text, shell=flag)",
        "torch.hub.load_state(path, weights_only=False)",
        "reader(path, allow_pickle=True)",
        "subprocess.run(['sh', '-c', text])",
        "import pandas; frame.query(text)",
        "import pandas; frame.eval(text)",
        "import_module(name)",
        "host.cmd(text)",
    ],
)
def test_it_would_be_found(source: str) -> None:
    assert list(risks(source))


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import pandas; frame.query('degraded')",
        "json.loads(text)",
        "re.compile(text)",
        "subprocess.run(words, shell=False)",
    ],
)
def test_what_is_harmless_is_left_alone(source: str) -> None:
    assert not list(risks(source))
