"""Any command line and any file in conf/ give a valid Config or one ConfigError, and nothing is executed.

Hydra and OmegaConf parse what a user writes. Their parsers also raise exceptions of other libraries.
"""

from __future__ import annotations

import os
import string
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.config.load import load_config
from testbed.config.schema import Config
from testbed.errors import ConfigError
from testbed.grid import config_signature, points

SMOKE = "+experiment=smoke"
SECRET = "a-value-of-the-environment"
KEYS = """
methods devices bandwidths tokens compute_mode time_scale repeats point_budget_s seed results_dir resume
runner experiment model model.name model.layers model.hidden model.heads model.pretrained topology topology.name device
device.name device.reference_model device.reference_model.tokens device.reference_s network network.backend single
device.memory_gb checkpoint topology.links topology.links.0 topology.trunk_share all_gather queue_kb
astra astra.groups astra.groups.0 astra.codebook_size astra.optimizations pipeline bandwidths.x settings
settings.astra method
_target_ model._target_ hydra hydra.run.dir hydra/launcher hydra.searchpath defaults tokens.x a.b.c
"""
NASTY = """
nan inf -inf 1e400 1e308 1e-320 -0.0 00 0x10 1_000 null true ??? ~ [] {} '' "" ' " \\ \\' $ ${ ${} ${.} ${..}
${tokens} ${devices.0} ${results_dir} ${oc.env:FUZZ_SECRET} '${oc.env:FUZZ_SECRET}' ${oc.env:${all_gather}} ${now:%Y}
${hydra:runtime.cwd} ${python_version:} ${oc.decode:"[1]"} ${oc.create:{a:1}} ${oc.select:tokens}
{_target_:os.system} {_target_:os.system,command:exit} os.system !!python/object/apply:os.system [a:b] {a:1,a:2} {1:2}
{null:1} {[1]:2} ${a}${b} choice(1,2) range(1,9) shuffle([1,2]) sort(3,1) glob(*) int(3) float(x) str([1]) tag(a,b)
extend_list(1) ../x /dev/null single astra smoke vit_base star mininet latency __init__ assets 1 2 64 768
ring mesh hierarchical h*
"""
LONG = ["9" * 400, "9" * 5000, "[" * 99 + "]" * 99, "{a:" * 99, "a\nb", "'a\nb'", "\x00", "\x1b[2J", "\udcff", "é"]
WORDS = [*NASTY.split(), *LONG]


def nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    items = st.lists(inner, max_size=3).map(",".join)
    pairs = st.lists(st.tuples(st.sampled_from([*KEYS.split(), *WORDS]), inner).map(":".join), max_size=3).map(",".join)
    return items.map("[{}]".format) | pairs.map("{{{}}}".format) | inner.map("'{}'".format)


SCALARS = st.sampled_from(WORDS) | st.integers().map(str) | st.floats().map(repr) | st.text(max_size=8)
VALUES = st.recursive(SCALARS, nested, max_leaves=6)
PREFIXES = st.sampled_from(["", "", "", "", "+", "++", "~"])
OVERRIDES = st.tuples(PREFIXES, st.sampled_from(KEYS.split()), st.just("="), VALUES).map("".join)
TEXTS = st.text(string.printable + "é\x00\u2028\udcff", max_size=20)


_seen: list[str] | None = None  # while armed: what was run


def _watch(event: str, args: tuple[object, ...]) -> None:
    if _seen is not None and event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"):
        _seen.append(f"{event} {args}")


sys.addaudithook(_watch)  # for good: a hook cannot be removed


@contextmanager
def nothing_is_run() -> Iterator[None]:
    global _seen
    _seen = seen = []
    try:
        yield
    finally:
        _seen = None
    assert not seen


def usable(words: list[str]) -> Config | None:
    """The configuration, after the first steps of a run; None if there was one ConfigError."""
    try:
        with nothing_is_run():
            config = load_config(words)
    except ConfigError as error:
        assert str(error).isprintable() and SECRET not in str(error)
        return None
    assert SECRET not in repr(config) and "${" not in repr(config)
    assert config_signature(config) and points(config)
    assert config.emulated_device().macs_per_s > 0
    return config


@pytest.fixture(autouse=True, scope="module")
def environment() -> Iterator[None]:
    os.environ["FUZZ_SECRET"] = SECRET
    yield
    del os.environ["FUZZ_SECRET"]


@settings(max_examples=35)  # milliseconds to a third of a second each, most of it Hydra's
@given(st.lists(OVERRIDES | TEXTS, min_size=1, max_size=2))
def test_any_words_give_a_config_or_one_clear_error(words: list[str]) -> None:
    usable([SMOKE, *words])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("bandwidths.x=1", "bandwidths.x=1: cannot be set: "),
        ("tokens=" + "9" * 5000, "cannot be read"),
        ("devices=" + "[" * 900 + "]" * 900, "cannot be read"),
        ("devices=" + "[" * 150 + "]" * 150, "devices="),
        ("tokens=" + "9" * 19, "must be whole numbers from 1 to 1000000"),
        ("seed=" + "9" * 400, "seed=" + "9" * 200 + "...: must be a number of at most 64 bits"),
        ("results_dir=a\nb", r"results_dir=a\nb: must be a path in UTF-8 without control characters"),
        ("model._target_=os.system", "model._target_=os.system: unknown"),
        ("hydra.callbacks.x._target_=os.system", "hydra.callbacks.x._target_=os.system: unknown"),
        ("+hydra.searchpath=[file:///tmp]", "hydra.searchpath=[file:///tmp]: unknown"),
        ("hydra/launcher=basic", "hydra/launcher=basic: unknown"),
    ],
)
def test_what_fuzzing_found(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught, nothing_is_run():
        load_config([SMOKE, word])
    assert message in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "value", ["${oc.env:FUZZ_SECRET}", "'${oc.env:FUZZ_SECRET}'", "a${now:%Y}", "${tokens}", "'${oc.env:${seed}}'"]
)
def test_nothing_is_taken_from_the_environment_the_clock_or_other_keys(value: str) -> None:
    with pytest.raises(ConfigError, match=r"results_dir=.*\$\{.*must not contain") as caught:
        load_config([SMOKE, f"results_dir={value}"])
    assert SECRET not in str(caught.value)


FOREIGN = b"""# @package _global_
experiment: foreign
runner: latency
methods: single
devices: 1
bandwidths: 10
"""


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            b"tokens: 1\nresults_dir: ${oc.env:FUZZ_SECRET}",
            "results_dir=${oc.env:FUZZ_SECRET} (conf/experiment/foreign.yaml, line 8): must not",
        ),
        (b"tokens: ['${seed}']", "tokens=${seed} (conf/experiment/foreign.yaml, line 7): must not"),
        (
            b"tokens: !!python/object/apply:os.system ['exit']",
            "foreign.yaml, line 7): must not have tags or merged keys: tag:yaml.org,2002:python/object",
        ),
        (
            b"tokens: 1\nmodel: {_target_: os.system}",
            "model._target_=os.system (conf/experiment/foreign.yaml): unknown",
        ),
        (b"tokens: 1\nhydra: {callbacks: {x: {_target_: os.system}}}", None),  # never looked at
        (b"tokens: 1\nhydra: {searchpath: ['file:///tmp']}", "hydra.searchpath is only supported"),
        (b"tokens: &loop [*loop]", "foreign.yaml, line 7): must not repeat a value by an alias: tokens"),
        (b"tokens: " + b"[" * 1000, "must not have so many lists and mappings inside each other"),
        (b"tokens: 1\nmodel: {name: 0x" + b"f" * 5000 + b"}", "model.name=0xfff"),
        (b"tokens: " + b"9" * 5000, "foreign.yaml, line 7): cannot be read: Exceeds the limit"),
        (b"tokens: \xff\xfe", "can't decode"),
        (b"{1: 2, null: 3}", "experiment=foreign (conf/experiment/foreign.yaml, line 7): is not YAML: "),
        (b"- tokens", "experiment=foreign (conf/experiment/foreign.yaml, line 7): is not YAML: "),
        (b"", "tokens= (conf/runner/latency.yaml): is needed; it must be whole numbers"),
    ],
)
def test_files_of_conf_are_data(conf: Path, lines: bytes, message: str | None) -> None:
    (conf / "experiment" / "foreign.yaml").write_bytes(FOREIGN + lines)
    if message is None:
        assert usable(["+experiment=foreign"])
        return
    with pytest.raises(ConfigError) as caught, nothing_is_run():
        load_config(["+experiment=foreign"])
    assert message in str(caught.value)
    assert str(caught.value).isprintable() and SECRET not in str(caught.value)
