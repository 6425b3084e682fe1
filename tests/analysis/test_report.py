import sys

import pytest
from rich.console import Console

from analysis import report
from analysis.figures import latency_breakdown, speedup_plot
from analysis.styles import line_styles
from analysis.summary import summarize
from analysis.tables import points
from tests.analysis import synthetic

FIGURES = ["breakdown.pdf", "breakdown.png", "speedup.pdf", "speedup.png"]
PARTIAL = {
    "one bandwidth": synthetic.sweep(bandwidths=(10.0,), repeats=1),
    "one method": synthetic.frame([synthetic.row("astra", 1, speedup=None)]),
    "only single": synthetic.frame([synthetic.row("single")]),
    "no bandwidth": synthetic.frame([synthetic.row("single", bandwidth_mbps=None)]),
    "all failed": synthetic.frame([synthetic.failed("tensor"), synthetic.failed("astra", 1)]),
    "some failed": synthetic.frame([synthetic.row("single"), synthetic.row("astra", 1), synthetic.failed("tensor")]),
    "no parts": synthetic.frame(
        [synthetic.row("astra", 1) | dict.fromkeys(("compute_ms", "encode_ms", "wire_ms", "wait_ms", "decode_ms"))]
    ),
    "two device counts": synthetic.frame([synthetic.row("astra", 1, devices=devices) for devices in (2, 4)]),
}


@pytest.fixture
def folder(tmp_path):
    synthetic.sweep(bandwidths=(10.0, 100.0)).to_parquet(tmp_path / "results.parquet", index=False)
    return tmp_path


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes seconds; tests of the text do without."""
    monkeypatch.setattr(report, "draw", lambda frame, out_dir: [])


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_figures_are_written_as_png_and_pdf(tmp_path):
    frame = synthetic.sweep()
    frame.loc[frame["method"] == "pipeline", "fidelity"] = "degraded"
    paths = speedup_plot(frame, tmp_path) + latency_breakdown(frame, tmp_path)
    assert sorted(path.name for path in paths) == FIGURES
    assert all(is_png(path) if path.suffix == ".png" else path.read_bytes().startswith(b"%PDF") for path in paths)


def test_every_line_has_its_own_look():
    styles = line_styles(points(synthetic.clock_check()))
    looks = {(look["color"], look["marker"], str(look["linestyle"])) for look in styles.values()}
    assert len(looks) == len(styles) == 15


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_results_are_reported(name, tmp_path, capsys):
    PARTIAL[name].to_csv(tmp_path / "results.csv", index=False)
    summarize(tmp_path)
    assert "Latency (ms" in capsys.readouterr().out
    assert (tmp_path / "report" / "tables.md").stat().st_size > 100


def test_summary_says_everything_and_is_not_cut(folder, capsys):
    summarize(folder)
    out = capsys.readouterr().out
    assert "vit_base, 12 layers, D = 768, 1024 tokens, 4 devices, star" in out
    assert "compute replay: arithmetic replaced by the device profile's slots" in out
    assert "Speed-up over one device" in out
    assert "The paper's reported figures beside ours" in out
    assert "results.parquet" in out and "speedup.pdf" in out
    assert "…" not in out and "\x1b" not in out


def test_loopback_is_never_called_a_network_measurement(tmp_path, capsys, no_figures):
    synthetic.sweep(bandwidths=(10.0,), network="loopback").to_csv(tmp_path / "results.csv", index=False)
    summarize(tmp_path)
    assert "not a network measurement" in capsys.readouterr().out
    assert "not a network measurement" in (tmp_path / "report" / "tables.md").read_text()


def test_failed_and_degraded_points_are_marked_and_explained(tmp_path, capsys, no_figures):
    rows = [synthetic.row("astra", 1, fidelity="degraded", verified=False), synthetic.failed("tensor")]
    synthetic.frame(rows).to_csv(tmp_path / "results.csv", index=False)
    summarize(tmp_path)
    out = capsys.readouterr().out
    assert "138.1~" in out and "~ degraded" in out and "verified no" in out
    assert "rank 2 is missing after 30 s" in out


def test_clock_check_compares_the_modes(tmp_path, capsys, no_figures):
    synthetic.clock_check().to_csv(tmp_path / "results.csv", index=False)
    summarize(tmp_path)
    out = capsys.readouterr().out
    assert "replay vs hold" in out and "-5.0%" in out and "time scale 8" in out


def test_terminal_gets_colour_and_its_own_width(folder, tmp_path, no_figures):
    with (tmp_path / "terminal").open("w+") as file:
        summarize(folder, Console(file=file, force_terminal=True, width=160))
        file.seek(0)
        assert "\x1b[" in file.read()


def test_old_figures_go_when_there_is_nothing_to_show(folder):
    assert (len(report.write_report(folder)), len(list((folder / "report").iterdir()))) == (5, 5)
    synthetic.frame([synthetic.failed("tensor")]).to_parquet(folder / "results.parquet", index=False)
    report.write_report(folder)
    assert [path.name for path in (folder / "report").iterdir()] == ["tables.md"]


def test_tables_md_has_the_tables_and_the_figures(folder):
    (folder / "manifest.json").write_text('{"runs": [{"git_sha": "0123abc"}]}')
    text = (report.write_report(folder)[0]).read_text()
    assert text.startswith("# bandwidth_sweep\n")
    assert "| astra G=32 |" in text and "![speedup](speedup.png)" in text and "code revision 0123abc" in text


def test_command_line(folder, capsys, monkeypatch, no_figures):
    monkeypatch.setattr(sys, "argv", ["report", str(folder)])
    report.main()
    assert "Latency (ms" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["report", str(folder / "nowhere")])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 2
    assert "no such folder" in capsys.readouterr().err
