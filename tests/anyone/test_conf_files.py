"""Any file that a user adds to conf/: rows, the beginning of a measurement, or one line that names the file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.config import fields
from tests.anyone.command import examples, tried
from tests.anyone.test_words import KEYS, PLAUSIBLE

EXPERIMENT = (
    "# @package _global_\nexperiment: mine\nmethods: [single, sequence]\ndevices: 2\nbandwidths: 10\ntokens: 8\n"
)
DEVICE = (fields.CONF / "device" / "gtx1660ti.yaml").read_text()
TOPOLOGY = "name: mine\nlinks: [h* d0]\ntrunk_share: 1.0\n"
MODEL = (fields.CONF / "model" / "vit_tiny.yaml").read_text()
FILES = {"experiment": EXPERIMENT, "device": DEVICE, "topology": TOPOLOGY, "model": MODEL}
ODDITIES = """&a 1|*a|!!str 5|!!python/name:os.system|010|0o17|1:30|on|yes|~|.inf|.nan|-.INF|1_000|0x1F|2024-01-01
"a\\tb"|'x'|>-|[1,|{a: 1|{a: {b: [c]}}|[[1]]|1e3|1.|.5|+1|""|''|?|-|null|é|"\\ud800"|${oc.env:HOME}|${devices}|???|=
<<|@x|`x`|%x|true|[on, off]|1,2
""".replace("\n", "|").split("|")
LINES = [
    "defaults: [override /topology: ring]",
    "defaults:\n  - /nowhere",
    "defaults: 5",
    "hydra: {run: {dir: x}}",
    "---",
]
LINES += [
    "presets: {a: {devices: 3}}",
    "presets: 5",
    "presets: {a: 5}",
    "<<: {a: 1}",
    "? a\n: b",
    "...",
    "\t",
    "# é",
    "5: 6",
]
LINES += ["a.b: 1", "model.layers: 2", "method: {x: 1}", "preset: a", "runner: x", "_target_: os.system", "name: other"]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    """(group, content) of a file with some odd lines."""
    group = draw(st.sampled_from(sorted(FILES)))
    lines = FILES[group].splitlines()
    keys = {
        "experiment": sorted(KEYS["latency"]),
        "device": ["name", "reference_s", "memory_gb", "reference_model", "reference_model.layers"],
        "topology": ["name", "links", "trunk_share"],
        "model": ["name", "layers", "hidden", "heads", "patch", "classes", "pretrained"],
    }[group]
    for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
        key, value = draw(st.sampled_from(keys)), draw(st.sampled_from(ODDITIES) | st.sampled_from(PLAUSIBLE))
        section, dot, name = key.rpartition(".")
        line = f"{section}: {{{name}: {value}}}" if dot and draw(st.booleans()) else f"{key}: {value}"
        same = [i for i, old in enumerate(lines) if old.startswith(f"{key}:")]
        if same and draw(st.integers(0, 4)):
            lines[same[0]] = line
        else:
            lines.append(line)
    lines += [draw(st.sampled_from(LINES))] if draw(st.integers(0, 3)) == 0 else []
    end = draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\u2028"]))
    content = (end.join(lines) + draw(st.sampled_from(["", end]))).encode()
    odd = draw(st.integers(0, 59))
    marks = [b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"\x1b"]
    return group, marks[odd] + content if odd < len(marks) else content[
        : draw(st.integers(0, 99))
    ] if odd == 4 else content


@pytest.fixture(scope="module")
def conf() -> Iterator[Path]:
    """A copy of conf/ that replaces it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        copy = Path(folder) / "conf"
        shutil.copytree(fields.CONF, copy)
        patch.setattr(fields, "CONF", copy)
        yield copy


@examples(20)
@given(files(), st.sampled_from(["mine", "mine", "Mine x", "a=b", "é", "NA", "010"]))
def test_files(conf: Path, file: tuple[str, bytes], name: str) -> None:
    group, content = file
    path = conf / group / f"{name}.yaml"
    path.write_bytes(content)
    try:
        with tempfile.TemporaryDirectory() as folder:
            small = [] if group == "experiment" else ["methods=single", "bandwidths=10", "tokens=4", "devices=2"]
            words = [f"+experiment={name if group == 'experiment' else 'smoke'}", *small]
            words += [f"{group}={name}"] if group != "experiment" else []
            tried(f"files of conf/{group}", [*words, "network=analytic", f"results_dir={folder}"])
    finally:
        path.unlink()
