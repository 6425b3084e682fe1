import errno
import re
import shlex
from html import unescape

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from analysis.accuracy import accuracy_figures, results
from analysis.latency import latency_breakdown, speedup_plot
from analysis.load import load_rows, normalize
from analysis.panels import save
from analysis.points import points
from analysis.report import render, sections
from analysis.report.__main__ import main as report_main
from analysis.report.figure_files import Drawing
from analysis.report.terminal import summarize
from analysis.report.write import write_report
from analysis.styles import line_styles
from testbed.config.load import load_config
from testbed.errors import TestbedError
from testbed.results.schema import ACCURACY
from tests.analysis import synthetic
from tests.analysis.synthetic_quality import quality, quality_row

FIGURES = ["breakdown.pdf", "breakdown.png", "speedup.pdf", "speedup.png"]
TEXTS = {"report.html", "tables.md", "tables.tex"}
DRAWERS = ("speedup_plot", "latency_breakdown", "devices_plot", "tokens_plot", "break_even_map", "heterogeneous_plot")
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
    for name in DRAWERS:
        monkeypatch.setattr(sections, name, lambda *_: [])


@pytest.fixture
def no_rendering(monkeypatch):
    """Figures are made, but no image is written."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path: path.write_bytes(b"not an image"))


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def test_figures_are_written_as_png_and_pdf(tmp_path):
    frame = synthetic.sweep()
    frame.loc[frame["method"] == "pipeline", "fidelity"] = "degraded"
    paths = speedup_plot(frame, tmp_path) + latency_breakdown(frame, tmp_path)
    assert sorted(path.name for path in paths) == FIGURES
    assert all(is_png(path) if path.suffix == ".png" else path.read_bytes().startswith(b"%PDF") for path in paths)


def test_logarithmic_axes_have_numbers_not_formulas(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(Figure, "savefig", lambda self, _: labels.extend(x.get_text() for x in axes.get_xticklabels()))
    figure, axes = plt.subplots()
    axes.plot([10, 300], [1, 2])
    axes.set_xscale("log")
    save(figure, tmp_path / "x")
    assert {"10", "20", "50", "100", "200"} <= set(labels) and not any("$" in label for label in labels)


def test_every_line_has_its_own_look():
    styles = line_styles(points(synthetic.clock_check()))
    looks = {(look["color"], look["marker"], str(look["linestyle"])) for look in styles.values()}
    assert len(looks) == len(styles) == 15


def test_variants_of_one_number_of_groups_differ_by_more_than_their_dash():
    rows = [synthetic.row("astra", 1, optimizations=f"chunks{n}") for n in range(2, 9)]
    looks = line_styles(points(synthetic.frame(rows))).values()
    assert len({(look["color"], look["marker"]) for look in looks}) == len({look["marker"] for look in looks}) == 7


def test_a_codec_has_one_dash_in_every_method():
    codecs = ("fp32", "fp16", "int8", "int4", "topk")
    rows = [synthetic.row(method, codec=codec) for method in ("tensor", "sequence") for codec in codecs]
    table = points(synthetic.frame(rows))
    styles = line_styles(table)
    looks = {
        (str(styles[label]["linestyle"]), codec) for label, codec in zip(table["label"], table["codec"], strict=True)
    }
    assert len(looks) == len(codecs) == len({dash for dash, _ in looks})


@pytest.fixture
def tick_labels(monkeypatch):
    """What the ticks of figures say, instead of images: a list of (x, y) for each panel."""
    panels = []

    def collect(self, _):
        self.canvas.draw()
        shown = [[ticks() for ticks in (axes.get_xticklabels, axes.get_yticklabels)] for axes in self.axes]
        panels.extend([[text.get_text() for text in labels if text.get_text()] for labels in pair] for pair in shown)

    monkeypatch.setattr(Figure, "savefig", collect)
    return panels


def test_narrow_ranges_have_ticks(tmp_path, tick_labels):
    rows = [synthetic.row("astra", 1, bandwidth_mbps=mbps, speedup=2.1 + mbps / 100) for mbps in (10.0, 20.0)]
    speedup_plot(synthetic.frame(rows), tmp_path)
    assert {"1", "1.5", "2", "2.5"} <= set(tick_labels[0][1])
    tick_labels.clear()
    frame = normalize(quality(), ACCURACY)
    accuracy_figures(frame.assign(bits_per_token=(frame["groups"] == 8).map({True: 320.0, False: 317.5})), tmp_path)
    assert {"256", "512"} <= set(tick_labels[0][0])


def test_one_curve_joins_what_only_bits_tell_apart():
    by_size = pd.DataFrame([quality_row(codebook_size=size, bits_per_token=8 + i) for i, size in enumerate((256, 512))])
    by_groups = pd.DataFrame([quality_row(groups=groups) for groups in (1, 8)])
    assert results(normalize(by_size, ACCURACY))["series"].nunique() == 1
    assert results(normalize(by_groups, ACCURACY))["series"].nunique() == 1
    assert results(normalize(pd.concat([by_size, by_groups]), ACCURACY))["series"].nunique() == 3  # one for each K


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_results_are_reported(name, tmp_path, capsys, no_rendering):
    PARTIAL[name].to_csv(tmp_path / "results.csv", index=False)
    summarize(tmp_path)
    assert "Latency (ms" in capsys.readouterr().out
    assert (tmp_path / "report" / "tables.md").stat().st_size > 100


def test_summary_says_everything_and_is_not_cut(folder, capsys, no_rendering):
    summarize(folder)
    out = capsys.readouterr().out
    assert "vit_base, 12 layers, D = 768, 1024 tokens, 4 devices, star" in out
    assert "compute replay: emulated compute times replace arithmetic" in out
    assert "Speed-up over one device" in out
    assert "Speed-ups of the paper beside ours" in out
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
    assert "138.1¹~" in out and "~ degraded" in out and "verified no" in out
    assert "rank 2 is missing after 30 s" in out


def test_clock_check_compares_the_modes(tmp_path, capsys, no_figures):
    synthetic.clock_check().to_csv(tmp_path / "results.csv", index=False)
    summarize(tmp_path)
    out = capsys.readouterr().out
    assert "replay vs hold" in out and "-5.0%" in out and "time scale 8" in out


def test_terminal_gets_color_and_its_own_width(folder, tmp_path, no_figures):
    with (tmp_path / "terminal").open("w+") as file:
        summarize(folder, Console(file=file, force_terminal=True, width=160))
        file.seek(0)
        assert "\x1b[" in file.read()


def test_where_there_is_no_room_intervals_take_two_lines_and_lose_nothing(tmp_path, no_figures):
    counts = (1, 2, 4, 8)
    rows = [
        quality_row(devices=n, pre_rotation="pca", change=-0.5, change_low=-0.93, change_high=-0.17) for n in counts
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    with (tmp_path / "narrow").open("w+") as file:
        summarize(tmp_path, Console(file=file, force_terminal=True, width=100))
        file.seek(0)
        text = file.read()
    assert text.count("-0.93") == text.count("-0.17]") == len(counts)


def test_no_number_is_cut_and_no_label_left_out_where_there_is_no_room(tmp_path, no_figures):
    rows = synthetic.sweep()
    rows.to_csv(tmp_path / "results.csv", index=False)
    with (tmp_path / "narrow").open("w+") as file:
        summarize(tmp_path, Console(file=file, width=60))
        file.seek(0)
        lines = [line.split() for line in file.read().splitlines()]
    whole = ["tensor", "92,501", "46,296", "18,574", "9,333", "4,712", "1,940", "3.9%", "3", "yes"]
    assert whole in lines and ["single", *["359.0"] * 6, "3.9%", "3", "yes"] in lines


def test_foreign_text_is_no_markup(tmp_path, no_figures):
    failed = synthetic.failed("tensor", error="[/tmp/x] [red]Bad address[/] :bug:")
    synthetic.frame([failed]).to_csv(tmp_path / "results.csv", index=False)
    with (tmp_path / "out").open("w+") as file:
        summarize(tmp_path, Console(file=file, width=160))
        file.seek(0)
        assert "[/tmp/x] [red]Bad address[/] :bug:" in file.read()


def test_a_report_that_cannot_be_written_is_one_line_after_the_tables(folder, capsys, monkeypatch, no_figures):
    (folder / "report").write_text("")
    with pytest.raises(TestbedError, match="report: no folder, so no report can be written to it"):
        summarize(folder)
    assert "Speed-up over one device" in capsys.readouterr().out
    assert report_main([str(folder)]) == 2
    (folder / "report").unlink()
    (folder / "report").mkdir()
    (folder / "report" / "tables.md").symlink_to("/dev/full")
    assert report_main([str(folder)]) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith("report/tables.md cannot be written: No space left on device")
    )


def test_a_figure_that_cannot_be_written_is_named(folder, capsys, monkeypatch):
    def fail(self, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    assert report_main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"report: \S+/report/\w+\.png cannot be written: No space left on device", line)


def test_old_figures_go_and_other_files_stay(folder, no_rendering):
    names = {path.name for path in write_report(folder)}
    assert names == {*TEXTS, *FIGURES, "break_even.png", "break_even.pdf"}
    for name in ("photo.png", "run-notes", "report.pdf"):
        (folder / "report" / name).write_text("x")
    synthetic.frame([synthetic.failed("tensor")]).to_parquet(folder / "results.parquet", index=False)
    write_report(folder)
    assert {path.name for path in (folder / "report").iterdir()} == {*TEXTS, "photo.png", "run-notes"}


def test_figures_of_several_numbers_of_devices_are_apart(folder, no_rendering):
    four = synthetic.sweep(bandwidths=(10.0, 100.0))
    two = synthetic.sweep(bandwidths=(10.0, 100.0), devices=2)
    pd.concat([four, two[two["method"] != "single"]]).to_parquet(folder / "results.parquet", index=False)
    drawn = {str(path.relative_to(folder / "report")) for path in write_report(folder)}
    places = ("devices-2-tokens-1024", "devices-4-tokens-1024")
    assert {f"{place}/{name}.png" for place in places for name in ("speedup", "breakdown")} <= drawn
    assert {"devices.png", "break_even.png"} <= drawn
    four.to_parquet(folder / "results.parquet", index=False)
    write_report(folder)
    assert not [*(folder / "report").glob("*/*.png")]  # what the new rows do not show is gone


def test_tables_md_has_the_tables_and_the_figures(folder, no_rendering):
    (folder / "manifest.json").write_text('{"runs": [{"git_sha": "0123abc"}]}')
    write_report(folder)
    text = (folder / "report" / "tables.md").read_text()
    assert text.startswith("# bandwidth_sweep\n")
    assert "| astra G=32 |" in text and "](speedup.png)" in text and "revision: 0123abc" in text


def html_of(folder, *words):
    code = report_main([str(folder), *words])
    return code, (folder / "report" / "report.html").read_text()


def test_the_page_needs_nothing_from_elsewhere(folder, no_rendering):
    code, text = html_of(folder)
    assert code == 0
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text)
    assert len([source for source in sources if source.startswith("data:image/png;base64,")]) == 3
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"https?://|//[a-z]|@import|url\(|<script|<link", re.sub(r"base64,[^\"]*", "", text))
    anchors = set(re.findall(r'id="([^"]+)"', text))
    assert {source[1:] for source in sources if source.startswith("#")} == anchors and len(anchors) == 16


def test_sections_without_data_say_what_to_run(folder, no_figures):
    _, text = html_of(folder)
    assert text.count("(no results yet)") == 10
    said = re.findall(r"Run: \.venv/bin/python -m testbed\.run ([^<]*)", unescape(text))
    assert len(said) == 9
    for words in said:  # commands that exist, with keys that exist
        for command in words.split(", then .venv/bin/python -m testbed.run "):
            assert load_config([*shlex.split(command), "network=loopback"])


def test_the_page_shows_text_as_text(tmp_path, no_figures):
    synthetic.frame([synthetic.failed("tensor", error="<script>alert(1)</script> & | $x$ \\input{x}")]).to_csv(
        tmp_path / "results.csv", index=False
    )
    (tmp_path / "manifest.json").write_text('{"runs": [{"git_sha": "<b>", "argv": ["<i>", 7, null], "clusters": [3]}]}')
    _, text = html_of(tmp_path)
    assert "&lt;script&gt;" in text and "<script" not in text and "<b>" not in text and "<i>" not in text
    latex = (tmp_path / "report" / "tables.tex").read_text()
    assert r"\$x\$ \textbackslash" in latex and "\\input" not in latex and r"\toprule" in latex


def test_captions_say_network_and_mode_and_degraded_points_are_marked(folder, no_figures):
    frame = synthetic.sweep(bandwidths=(10.0, 100.0), network="loopback")
    frame.loc[(frame["method"] == "pipeline"), ["fidelity", "fidelity_note"]] = ["degraded", "a busy host"]
    frame.to_parquet(folder / "results.parquet", index=False)
    _, text = html_of(folder)
    assert "2 of 14 points are degraded" in text and "a busy host" in text
    assert "not a network measurement" in text
    slower = re.findall(r"Slower than one device at 10 Mbps: ([^.<]*)", text)
    assert slower and "pipeline" not in slower[0]  # no sentence rests on a degraded point
    assert "At 10 Mbps the fastest of the points that are not degraded is" in text
    drawing = Drawing(folder)
    (figure,) = drawing.figures([folder / "speedup.png"], "Speed-up.", load_rows(folder))
    assert "network loopback, compute replay (device profile gtx1660ti)" in figure.caption


def test_several_runs_make_one_page(tmp_path, no_rendering):
    two = synthetic.sweep(bandwidths=(10.0, 100.0), devices=2)
    two = two[two["method"] != "single"]
    four = synthetic.sweep(bandwidths=(10.0, 100.0))
    for name, frame in (("two", two), ("four", four), ("four-20261121T100352.259034Z", four)):
        (tmp_path / name).mkdir()
        frame.to_parquet(tmp_path / name / "results.parquet", index=False)
    (tmp_path / "latest").symlink_to("four")
    code, text = html_of(tmp_path)
    assert code == 0
    assert "Run 2: bandwidth_sweep" in text and "Run 3" not in text  # a link and what was set aside are no other runs
    drawn = {str(path.relative_to(tmp_path / "report")) for path in (tmp_path / "report").glob("**/*.png")}
    assert drawn == {
        *("run-1/speedup.png", "run-1/breakdown.png", "run-2/speedup.png", "run-2/breakdown.png"),
        *("devices.png", "break_even.png"),
    }


def test_what_can_be_shown_is_shown(folder, capsys, no_figures):
    (folder / "broken").mkdir()
    (folder / "broken" / "results.parquet").write_bytes(b"not parquet")
    code = report_main([str(folder / "broken"), str(folder), "--out", str(folder / "both")])
    text = (folder / "both" / "report.html").read_text()
    assert (
        code == 1 and "Left out:" in text and "broken/results.parquet: cannot be read" in text and "astra G=32" in text
    )
    assert "left out" in capsys.readouterr().err
    assert report_main([str(folder / "broken")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert report_main([str(folder / "nowhere")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (folder / "empty").mkdir()
    assert report_main([str(folder / "empty")]) == 2
    assert "no results in it or below; run an experiment first" in capsys.readouterr().err


def test_a_browser_prints_the_page_where_there_is_one(folder, capsys, monkeypatch, tmp_path, no_figures):
    monkeypatch.setattr(render, "CHROMIUM", ("no-such-browser",))
    report_main([str(folder)])
    assert "no PDF: printing the page needs Chromium" in capsys.readouterr().out
    browser = tmp_path / "chromium"
    browser.write_text(
        '#!/bin/sh\nfor word; do case $word in --print-to-pdf=*) echo %PDF > "${word#*=}";; esac; done\n'
    )
    browser.chmod(0o755)
    monkeypatch.setattr(render, "CHROMIUM", (str(browser),))
    report_main([str(folder)])
    assert (folder / "report" / "report.pdf").is_file() and "report.pdf" in capsys.readouterr().out
    browser.write_text("#!/bin/sh\necho no display >&2\nexit 1\n")
    report_main([str(folder)])
    assert "could not print the page (no display)" in capsys.readouterr().out
    assert not (folder / "report" / "report.pdf").exists()
