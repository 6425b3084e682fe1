"""Any words for any experiment: the cost model's rows, the beginning of a measurement, or one line."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from testbed import run
from testbed.config import fields
from testbed.config.fields import choices
from testbed.config.schema import SCHEMAS
from testbed.network import probe, sandbox
from testbed.network.probe import Trial
from tests.anyone.command import examples, rows_below, tried
from tests.config.test_fuzz import TEXTS, VALUES

ANALYTIC = ["+experiment=smoke", "network=analytic", "bandwidths=10", "methods=[single,astra]", "astra.groups=1"]
PLAUSIBLE = [
    "0",
    "1",
    "2",
    "3",
    "4",
    "8",
    "16",
    "64",
    "255",
    "256",
    "1000000",
    "1000001",
    "-1",
    "1.5",
    "0.001",
    "1e6",
    "1e-3",
    ".5",
    "1e-300",
    "true",
    "false",
    "auto",
    '""',
    "[1,2]",
    "[2,4]",
    "[1,1.0]",
    "[1,true]",
    "[0.5,20]",
    "[]",
    "[single]",
    "[single,tensor]",
    "[single,sequence,ring,prism]",
    "[galaxy,megatron_sp]",
    "[pipeline,block]",
    "[astra,astra]",
    "[paper,lut,dedup+overlap,auto]",
    "overlap+chunks4",
    "chunks0",
    "chunks99",
    "lut+lut",
    "[fp32,fp16,int8,int4,topk]",
    "[x,kv]",
    "[ag,sp]",
    "[equal,speed]",
    "gtx1660ti+half_gtx1660ti",
    "quarter_gtx1660ti",
    "hierarchical",
    "pairwise",
    "direct",
    "ring",
    "star",
    "gather",
    "hold",
    "execute",
    "replay",
    "mesh",
    "two_tier",
    "[h*_d0]",
    '["h*',
    'd0"]',
    '["h*',
    'next"]',
    '["h0',
    'h1"]',
    '["h1/2',
    'd0","h2/2',
    'd1","d0',
    "d1",
    '0"]',
    '["h0',
    'd0","h1',
    'd1"]',
    '["h*',
    'h*","h0',
    "h1",
    '1000"]',
    "residual",
    "keys_values",
    "pca",
    "1-8",
    "8-1",
    "1-99999",
    "distill",
    "labels",
    "k-means",
    "trained",
    "/nowhere",
    "~",
    "~nobody/x",
    "/dev/null",
    "/proc/self/mem",
    ".",
    "..",
    "/",
    "a=b",
    "a#b",
    "a,b",
    "é",
    '"a',
    'b"',
    "日本",
    "NA",
    "nan",
    "null",
    "???",
    "NULL",
    "1_0",
    "0x1F",
    "0b1",
    "1e3",
    "10.0",
    "07",
    "+5",
    "12:30",
    "2024-01-01",
]


FITTING = {bool: "true false", int: "1 2 3 4 8 16", float: "0.1 0.5 1 2.5 30", str: "star x 2 a-b", Any: "1 2.5 auto"}
OF_METHODS = {"codec": "fp32 int8 [fp16,int4,topk]", "sync": "ring star gather ag sp", "gather": "x kv [x,kv]"}
OF_METHODS |= {
    "optimizations": "paper auto [lut,dedup] overlap+chunks4",
    "quantized": "residual",
    "pre_rotation": "pca",
}


def leaves(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The dotted keys of a schema, each with values that may fit."""
    kinds = get_type_hints(kind)
    for f in dataclasses.fields(kind):
        if f.name in ("settings", "profiles", "results_dir"):
            continue
        if dataclasses.is_dataclass(inner := kinds[f.name]):
            assert isinstance(inner, type)
            yield from leaves(inner, f"{prefix}{f.name}.")
            continue
        allowed = f.metadata["allowed"]
        item = get_args(inner)[0] if get_origin(inner) is list else inner
        named = allowed.partition("in conf/")[2].partition("/")[0]
        words = " ".join(choices(named)) if named else allowed.removeprefix("one of ").replace(",", "")
        fitting = words if named or allowed.startswith("one of ") else FITTING[item]
        if item is not inner:  # a list
            fitting += f" [{fitting.replace(' ', ',')}]"
        yield f"{prefix}{f.name}", fitting


def method_keys() -> Iterator[tuple[str, str]]:
    for name in choices("method"):
        settings: Any = OmegaConf.load(fields.CONF / "method" / f"{name}.yaml")
        yield from ((f"{name}.{key}", OF_METHODS.get(str(key), "1 2 4 8 [1,2]")) for key in settings)


KEYS = {
    runner: dict(leaves(schema)) | (dict(method_keys()) if runner == "latency" else {})
    for runner, schema in SCHEMAS.items()
}
GROUPS = ["model", "topology", "device", "network", "data", "runner", "preset", "experiment", "method"]
NAMES = sorted({name.rpartition("/")[2] for group in GROUPS for name in choices(group)} | {"ci", "long", "no"})
SETTABLE = st.sampled_from([*GROUPS, *choices("method"), *sorted({key for keys in KEYS.values() for key in keys})])
VALUE = st.sampled_from(PLAUSIBLE) | st.sampled_from(NAMES) | VALUES
OVERRIDE = st.tuples(st.sampled_from(["", "", "", "+", "++", "~"]), SETTABLE, st.just("="), VALUE).map("".join)


def fitting(runner: str) -> st.SearchStrategy[str]:
    """A key of a runner, with a value that may fit."""
    pairs = [f"{key}={value}" for key, values in KEYS[runner].items() for value in values.split()]
    return st.sampled_from(pairs)


def overrides(runner: str) -> st.SearchStrategy[list[str]]:
    """Words for a runner: up to three that may fit, and often one that is odd."""
    plausible = st.tuples(st.sampled_from(sorted(KEYS[runner])), st.just("="), st.sampled_from(PLAUSIBLE)).map("".join)
    odd = st.lists(plausible | OVERRIDE | TEXTS, max_size=1)
    return st.tuples(st.lists(fitting(runner), max_size=3), odd).map(lambda both: both[0] + both[1])


@pytest.fixture(autouse=True, scope="module")
def without_measurements() -> Iterator[None]:
    """What is left out: the sandbox, and experiments that measure something."""
    measure = run._measure

    def begun(config: Any, folder: Any) -> int:
        if config.emulates and config.network.backend == "analytic":
            return measure(config, folder)
        print("begun")
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_measure", begun)
        patch.setattr(sandbox, "supervise", lambda argv, backend: 0)
        patch.setattr(probe, "try_mininet", lambda graph: Trial("not tried here"))
        yield


@examples(20)
@given(overrides("latency"))
def test_the_cost_model(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ending = tried("words, cost model", [*ANALYTIC, f"results_dir={folder}", *words])
        if ending.code == 0 and list(Path(folder).glob("*/*/results.parquet")):
            rows = rows_below(Path(folder))
            assert set(rows["status"]) <= {"ok", "skipped"} and len(rows)
            for row in rows[rows["status"] == "ok"].to_dict("records"):
                assert row["latency_ms"] > 0 and math.isfinite(row["latency_ms"]) and row["formula_bytes"] >= 0, row


@examples(30)
@given(st.sampled_from(choices("experiment")), st.data())
def test_every_experiment_up_to_its_measurement(name: str, data: st.DataObject) -> None:
    runner = "latency"
    if name.rpartition("/")[2] in ("accuracy_vit", "accuracy_vit_small", "accuracy_lm", "fidelity", "incast"):
        runner = {"accuracy_vit_small": "accuracy_vit", "incast": "fidelity"}.get(name, name)
    words = data.draw(overrides(runner))
    with tempfile.TemporaryDirectory() as folder:
        tried("words, configuration", [f"+experiment={name}", "network=loopback", f"results_dir={folder}", *words])
