"""Foreign and damaged results folders give rows that tables can use, or one clear error."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.latency import speedup_plot
from analysis.load import ResultsError, load_rows, revisions
from testbed.errors import TestbedError
from testbed.results.run_folder import RunFolder
from testbed.results.schema import LATENCY
from tests.analysis import synthetic
from tests.results.test_run_folder import row

ROWS = synthetic.sweep(bandwidths=(10.0,), repeats=2)
TABLE = pa.Table.from_pandas(ROWS, preserve_index=False)
CSV = ROWS.to_csv(index=False).encode()


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


PARQUET = parquet(TABLE)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The file with a few bytes replaced, or without its end."""
    data = bytearray(whole)
    for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
        data[place : place + 1] = draw(st.binary(max_size=2))
    return bytes(data[: draw(st.integers(0, len(data)) | st.just(len(data)))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(tmp_path_factory.mktemp("results"), "smoke", "abc")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A folder with rows of latency 0.5 and 1.5 ms as a run writes them; a copy of the file is ``whole``."""
    folder = RunFolder(tmp_path_factory.mktemp("written"), "smoke", "abc")
    folder.append([row(compute_mode="replay"), row("astra", latency_ms=1.5, compute_mode="replay")])
    folder.parquet.rename(folder.path / "whole")
    return folder


def read(path: Path) -> pd.DataFrame | None:
    """The rows that ``load_rows`` reads; None for an error that names the file."""
    try:
        rows = load_rows(path.parent)
    except ResultsError as error:
        assert str(error).startswith(f"{path}: ") and str(error).isprintable()
        return None
    assert list(rows.columns) == list(LATENCY.columns) and len(rows)
    return rows


def resume(folder: RunFolder) -> bool:
    """Whether a run could continue from the folder's rows; False for an error that names the file."""
    try:
        folder.points()
    except TestbedError as error:
        assert str(error).startswith(f"{folder.parquet} is damaged") and str(error).isprintable()
        return False
    return True


@settings(max_examples=40)
@given(damaged(PARQUET) | st.binary(max_size=200).map(lambda inner: b"PAR1" + inner + b"PAR1") | st.binary())
def test_any_bytes_as_parquet(folder: RunFolder, data: bytes) -> None:
    folder.parquet.write_bytes(data)
    read(folder.parquet)
    resume(folder)


@settings(max_examples=40)
@given(damaged(CSV) | st.binary() | st.text().map(lambda text: CSV + text.encode()))
def test_any_bytes_as_csv(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "results.csv"
    path.write_bytes(data)
    read(path)


def noticed(written: RunFolder, place: int, bit: int) -> bool:
    """Whether one flipped bit of the file is an error for both readers; if for neither, then it changes nothing."""
    whole = bytearray((written.path / "whole").read_bytes())
    whole[place] ^= 1 << bit
    written.parquet.write_bytes(whole)
    rows, resumable = read(written.parquet), resume(written)
    assert rows is None or rows["latency_ms"].tolist() == [0.5, 1.5]
    assert not resumable or written.rows()["latency_ms"].tolist() == [0.5, 1.5]
    return rows is None and not resumable


@settings(max_examples=40)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
def test_a_flipped_bit_is_an_error_or_changes_nothing(written: RunFolder, place: float, bit: int) -> None:
    whole = (written.path / "whole").read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")  # the pages end where it begins
    noticed(written, 4 + int(place * (footer - 4)), bit)


def test_a_changed_latency_is_noticed(written: RunFolder) -> None:
    whole, latency = (written.path / "whole").read_bytes(), struct.pack("<d", 1.5)
    places = [match.start() for match in re.finditer(re.escape(latency), whole)]  # in a page and in statistics
    assert any([noticed(written, place, 3) for place in places])


def test_text_that_is_not_utf8_is_damage(folder: RunFolder) -> None:
    folder.parquet.write_bytes(PARQUET.replace(b"tensor", b"ten\xffor"))
    assert read(folder.parquet) is None and not resume(folder)


def test_a_fault_without_a_message_is_told_too(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pq, "read_table", fail)
    folder.parquet.write_bytes(PARQUET)
    assert read(folder.parquet) is None and not resume(folder)


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def extension(storage: pa.Array, payload: bytes) -> tuple[pa.Field, pa.Array]:
    """A column of the kind that earlier versions of pyarrow unpickled (CVE-2023-47248)."""
    marks = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    return pa.field("latency_ms", storage.type, metadata=marks), storage


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    folder, bomb = RunFolder(tmp_path, "smoke", "abc"), tmp_path / "unpickled"
    payload = pickle.dumps(Bomb(bomb))
    column = TABLE.schema.get_field_index("latency_ms")
    table = TABLE.set_column(column, *extension(pa.array([b"x"] * len(ROWS)), payload))
    for data in (payload, parquet(table)):
        folder.parquet.write_bytes(data)
        assert read(folder.parquet) is None and not resume(folder)
    folder.parquet.unlink()
    folder.csv.write_bytes(payload)
    assert read(folder.csv) is None
    (folder.path / "manifest.json").write_bytes(payload)
    assert revisions(folder.path) == []
    assert not bomb.exists()


ODD = {
    "list": [1],
    "struct": {"a": 1},
    "bytes": b"\xff",
    "decimal": Decimal("1e30"),
    "duration": timedelta(1),
    "time": pd.Timestamp(0),
    "formula": "=cmd|' /C calc'!A0",
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["latency_ms", "groups", "verified", "method"])
def test_columns_of_other_types(folder: RunFolder, name: str, kind: str) -> None:
    column = TABLE.schema.get_field_index(name)
    folder.parquet.write_bytes(parquet(TABLE.set_column(column, name, pa.array([ODD[kind]] * len(ROWS)))))
    readable, resumable = read(folder.parquet) is not None, resume(folder)
    assert name == "method" or not (readable or resumable)  # whatever can be written as text is a name


@pytest.mark.parametrize("metadata", [b"[]", b"[" * 100_000, b"{", b'{"index_columns": ["no"], "columns": []}'])
def test_pandas_metadata_is_not_trusted(folder: RunFolder, metadata: bytes) -> None:
    folder.parquet.write_bytes(parquet(TABLE.replace_schema_metadata({b"pandas": metadata})))
    assert read(folder.parquet) is None and not resume(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("latency_ms", "1e400", r"latency_ms=inf in row 0; allowed: 1e-09 to 1e\+15"),
        ("latency_ms", 0, "latency_ms=0.0 in row 0"),
        ("bandwidth_mbps", -5, "bandwidth_mbps=-5.0 in row 0"),
        ("speedup", 1e308, r"speedup=1e\+308 in row 0"),
        ("wire_ms", "-inf", r"wire_ms=-inf in row 0; allowed: -1e\+15 to"),
        ("groups", "9" * 30, r"groups=1e\+30 in row 0"),
        ("compute_mode", "guess\n", r"compute_mode=guess\\n in row 0; allowed: execute, hold, replay, analytic"),
    ],
)
def test_values_that_cannot_be_are_named(tmp_path: Path, name: str, value: object, message: str) -> None:
    ROWS.astype(object).assign(**{name: value}).to_csv(tmp_path / "results.csv", index=False)
    with pytest.raises(ResultsError, match=message):
        load_rows(tmp_path)


@pytest.mark.parametrize("text", ["=1+1", "x" * 1_000_000, "\x1b[2J\nerased", "$\\frac{$", "[red]|{0}%s"])
def test_text_stays_text(tmp_path: Path, text: str) -> None:
    ROWS.head(1).assign(error=text).to_csv(tmp_path / "results.csv", index=False)
    shown = text.replace("\x1b", r"\x1b").replace("\n", r"\n")
    assert (load_rows(tmp_path)["error"] == shown).all()


def test_figures_show_names_as_they_are(tmp_path: Path) -> None:
    """Matplotlib would read what stands between two dollars as a formula."""
    rows = synthetic.frame([synthetic.row("single", devices=1), synthetic.row("tensor") | {"method": "$\\frac{$"}])
    assert (tmp_path / "speedup.png") in speedup_plot(rows, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "NaN",
        "1",
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 10_000,
        "\ud800",
        '{"runs": [NaN]}',
        '{"runs": [{"git_sha": 0}]}',
        "{}",
    ],
)
def test_any_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode(errors="surrogatepass"))
    assert revisions(tmp_path) == []


def test_folders_in_place_of_files(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "smoke", "abc")
    for name in ("results.parquet", "results.csv", "manifest.json"):
        (folder.path / name).mkdir()
    with pytest.raises(ResultsError, match=r"no results\.parquet or results\.csv in it"):
        load_rows(folder.path)
    assert revisions(folder.path) == [] and not resume(folder)
