"""Odd results folders, given to every command of the analysis: a result or one line, and never a traceback."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from analysis.compare import main as compare_main
from analysis.report.__main__ import main as report_main
from analysis.report.terminal import print_comparison, summarize
from testbed.errors import TestbedError
from testbed.results.schema import SCHEMAS
from tests.analysis import synthetic
from tests.analysis.synthetic_quality import quality
from tests.analysis.test_heterogeneous import heterogeneous
from tests.analysis.test_incast import cliff
from tests.analysis.test_links import frame as links
from tests.analysis.test_links import rows as link_rows

BASES: dict[str, pd.DataFrame] = {
    "sweep": synthetic.sweep(bandwidths=(10.0, 100.0), repeats=2),
    "one point": synthetic.sweep(bandwidths=(10.0,), repeats=1).head(1),
    "modes": synthetic.clock_check(),
    "heterogeneous": heterogeneous(),
    "tokens": pd.concat([synthetic.sweep(bandwidths=(10.0,), repeats=1, tokens=tokens) for tokens in (256, 1024)]),
    "failed": synthetic.frame([synthetic.failed("tensor"), synthetic.failed("astra", 1)]),
    "accuracy": quality(),
    "perplexity": quality(metric="perplexity", corpus="text", model="vit_base"),
    "links": links(link_rows(), link_rows("netem", 1000, (1.0, 2.0)), link_rows(devices=8), link_rows(size_bytes=320)),
    "incast": links(*cliff()),
}
ODD = (
    math.nan,
    math.inf,
    -math.inf,
    None,
    "",
    "NA",
    "nan",
    0,
    -1,
    1,
    2.5,
    1e-9,
    1e15,
    1e308,
    "1e400",
    True,
    "x\n[/red]",
)
WORDS = (
    "ok",
    "failed",
    "skipped",
    "degraded",
    "single",
    "astra",
    "tbf",
    "analytic",
    "uncompressed",
    "trained",
    "speed",
)
MANIFESTS = (
    "",
    "{",
    "[]",
    '{"runs": 1}',
    '{"runs": [1, {"clusters": [{"calibration": [{"rate_error_pct": {"a": 1}}]}]}]}',
)


@st.composite
def odd_rows(draw: st.DrawFn) -> pd.DataFrame:
    """Rows of some experiment with a few things wrong."""
    rows = BASES[draw(st.sampled_from(list(BASES)))].astype(object).reset_index(drop=True)
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from(list(rows.columns)))
        some = draw(st.lists(st.integers(0, max(len(rows) - 1, 0)), min_size=1, max_size=4, unique=True))
        which = [index for index in some if index < len(rows)] if draw(st.booleans()) else list(rows.index)
        match draw(st.sampled_from(["value", "value", "value", "drop", "add", "repeat", "rows", "known"])):
            case "value":
                rows.loc[which, name] = draw(st.sampled_from([*ODD, *WORDS]))
            case "known":  # what most tables ask for
                known = draw(
                    st.sampled_from([n for n in ("status", "fidelity", "method", "stage") if n in rows] or [name])
                )
                rows.loc[which, known] = draw(st.sampled_from(WORDS))
            case "drop":
                rows = rows.drop(columns=name)
            case "add":
                rows[f"{name}_2"] = rows[name]
            case "repeat":
                rows = pd.concat([rows, rows.loc[which]], ignore_index=True)
            case "rows":
                rows = rows.loc[which].reset_index(drop=True)
    return rows


def written(folder: Path, rows: pd.DataFrame, as_parquet: bool, manifest: str | None) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("results.parquet", "results.csv", "manifest.json"):
        (folder / name).unlink(missing_ok=True)
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    if as_parquet:
        kinds = {str(name): kind for schema in SCHEMAS for name, kind in schema.columns.items()}
        plain = {name: str if kinds.get(str(name), "string") == "string" else float for name in rows}
        try:
            rows.astype(plain).to_parquet(folder / "results.parquet")
            return folder
        except (ValueError, TypeError):  # text in a column of numbers, which only a CSV file can hold
            pass
    rows.to_csv(folder / "results.csv", index=False)
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_images() -> Any:
    """Figures are made, but no image is written: that takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, path: path.write_bytes(b"no image"))
        patch.setattr("analysis.report.__main__.print_pdf", lambda html: (None, ""))
        patch.setattr("analysis.report.terminal.write_report", lambda folder, run: [])  # what the report command writes
        yield


MANIFEST = (
    st.none()
    | st.sampled_from(MANIFESTS)
    | st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["runs", "clusters", "calibration", "started", "argv", "cpu"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    ).map(json.dumps)
)


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])  # one to two seconds each
@given(odd_rows(), odd_rows(), st.booleans(), MANIFEST)
def test_odd_rows_are_reported_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory,
    rows: pd.DataFrame,
    others: pd.DataFrame,
    parquet: bool,
    manifest: str | None,
) -> None:
    base = tmp_path_factory.getbasetemp() / "odd"
    base.mkdir(exist_ok=True)
    one, two = written(base / "one", rows, parquet, manifest), written(base / "two", others, parquet, None)
    assert report_main([str(base), "--out", str(base / "report")]) in (0, 1, 2)
    assert compare_main([str(one), str(two)]) in (0, 2)
    try:
        summarize(one)
        print_comparison([one, two])
    except TestbedError as error:
        assert str(error).isprintable()
