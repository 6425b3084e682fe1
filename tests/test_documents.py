"""Commands that the documents tell people to type: those of experiments compose, those that only read are run.

docs/extending.md, whose commands need their own files, has tests/test_extending.py.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from analysis import compare
from analysis.load import load_rows
from analysis.points import latency_table, speedup_table
from analysis.report import render
from analysis.report.__main__ import main as report_main
from experiments import paper
from testbed.config.load import load_config
from testbed.results.schema import SCHEMAS
from testbed.run import INFORMING, OK

ROOT = Path(__file__).parents[1]
GENERATED = ("configuration.md", "columns.md")  # from conf/ and from the row schema
ADDITIONS = [ROOT / "docs" / "extending.md"]
PAGES = [ROOT / "README.md", ROOT / "ARTIFACT.md", *(ROOT / "docs").glob("*.md"), ROOT / "docs/measured/README.md"]
PAGES = [path for path in PAGES if path not in ADDITIONS and path.name not in GENERATED]
DECISIONS = sorted((ROOT / "docs/decisions").glob("*.md"))
LINE_LENGTH = 120  # of a line that somebody wrote
README_LINES = 170
TARGETS = dict(re.findall(r"^([a-z]+): .*## .*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(), re.MULTILINE))
PYTHON = (".venv/bin/python", "python")
SAMPLE = "notebooks/sample/bandwidth_sweep"
OPEN = re.compile(r"\.\.\.|\b[A-Z]{3,}\b")  # to be filled in by the reader
TERM = re.compile(r"^- \*\*(.+?)\*\*((?:.*\n)+?)(?=^- |^$)", re.MULTILINE)


def commands(path: Path) -> list[str]:
    """What a page's blocks and its text in typewriter say to type, without what the reader has to fill in."""
    text = path.read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:make|testbed|\.venv/bin/python -m|python -m) [^`\n]+)`", text)
    return [line for line in lines if line and not line.startswith("#") and not OPEN.search(line.replace("ARGS", ""))]


def words_of(line: str) -> list[str]:
    """What is run in the end: MODULE and its arguments; a target of the Makefile stands for its last command."""
    words = shlex.split(line, comments=True)
    if words[0] == "testbed":
        return ["testbed.run", *words[1:]]
    if words[0] == "make":
        given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        (target,) = [word for word in words[1:] if "=" not in word] or ["help"]
        recipe = TARGETS[target]
        module = re.findall(r"\$\(PY\) -m ([\w.]+) ?(\S*=\w+)?", recipe)
        preset = [f"preset={given['preset']}"] if "preset" in given else []
        assert not preset or "$(preset)" in recipe
        return [*filter(None, module[-1]), *preset, *shlex.split(given.get("ARGS", ""))] if module else []
    assert words[0] in PYTHON and words[1] == "-m", f"{line}: neither make nor python -m"
    return words[2:]


ALL = [(path.relative_to(ROOT).as_posix(), line) for path in PAGES for line in commands(path)]


def test_the_pages_have_commands() -> None:
    of_page = {where: [line for other, line in ALL if other == where] for where, _ in ALL}
    at_least = {"README.md": 8, "ARTIFACT.md": 11, "docs/results.md": 15, "docs/changing.md": 6}
    at_least |= {"docs/measured/README.md": 35, "docs/real_devices.md": 2}
    assert {where: len(of_page[where]) for where, least in at_least.items() if len(of_page[where]) < least} == {}


@pytest.mark.parametrize(("where", "line"), ALL)
def test_a_command_exists_and_composes(where: str, line: str) -> None:
    module, *words = words_of(line) or [""]
    assert not module or find_spec(module), line
    if module == "testbed.run" and not any(word in INFORMING for word in words):
        load_config(words)
    if module == "experiments.paper":
        for config in paper.paper_configs()["config"]:
            load_config([f"+experiment={config}", *words])


QUOTED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.""")
PATTERN = re.compile(r"[]*?[]|=~")  # a shell would look for files, or for a home folder
EXPERIMENTS = sorted((ROOT / "conf/experiment").rglob("*.yaml"))
PROPOSING = [path for name in ("testbed", "experiments", "analysis") for path in (ROOT / name).rglob("*.py")]


def bare(line: str) -> str:
    """A line of a shell without its comment and without what is in quotes."""
    return re.sub(r"(^|\s)#.*", "", QUOTED.sub("", line))


def test_commands_can_be_pasted_into_bash_and_zsh() -> None:
    assert bare("""run 'a=[1]' "b=*" c=\\[ # [2]""").split() == ["run", "c="]
    help_text = OmegaConf.load(ROOT / "conf/config.yaml").hydra.help.header
    typed = [line for path in PAGES + ADDITIONS + DECISIONS for line in commands(path)]
    typed += [line for path in EXPERIMENTS for line in re.findall("^# Run: (.*)", path.read_text(), re.MULTILINE)]
    typed += [line for line in help_text.splitlines() if "testbed.run" in line]
    assert len(typed) > 80
    assert [line for line in typed if PATTERN.search(bare(line))] == []


def sentences(path: Path) -> Iterator[str]:
    """The texts of more than one word in a module; of f-strings the parts between values."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def test_messages_propose_words_that_can_be_pasted() -> None:
    unquoted = re.compile(r"(?<!['\w.])[\w.]+=\[")
    found = [(path.name, text) for path in PROPOSING for text in sentences(path) if unquoted.search(text)]
    assert found == []


READERS = {"analysis.report": report_main, "analysis.compare": compare.main}
READING = sorted({tuple(words) for _, line in ALL if (words := words_of(line)) and words[0] in READERS})


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_command_that_only_reads_runs(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda self, path: path.write_bytes(b"not a figure"))
    monkeypatch.setattr(render, "CHROMIUM", ("no-such-browser",))
    monkeypatch.chdir(ROOT)
    module, *given = words
    shown = [word if Path(word).exists() or word.startswith("-") else SAMPLE for word in given] or [SAMPLE]
    assert READERS[module]([*shown, *(["--out", str(tmp_path)] if module == "analysis.report" else [])]) == OK


def fragments(path: Path) -> set[str]:
    """What links may add behind # to a page: its headings, as GitHub and the site write them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES + ADDITIONS + DECISIONS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    for target, fragment in re.findall(r"\]\(([^)#\s]*)(?:#([\w-]*))?\)", path.read_text()):
        page = path.parent / target if target else path
        assert target.startswith("https://") or page.exists(), target
        assert not fragment or page.suffix != ".md" or fragment in fragments(page), f"{target}#{fragment}"


@pytest.mark.parametrize("path", PAGES + ADDITIONS + DECISIONS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lines_are_short(path: Path) -> None:
    assert [line for line in path.read_text().splitlines() if len(line) > LINE_LENGTH] == []


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= README_LINES
    pages = {path.relative_to(ROOT).as_posix() for path in [*PAGES, *ADDITIONS]} - {"README.md", "docs/index.md"}
    assert {page for page in pages if f"]({page})" not in text} == set()


def test_the_glossary_defines_each_term_once_with_its_source_and_its_use() -> None:
    entries = TERM.findall((ROOT / "docs/glossary.md").read_text())
    names = [name for name, _ in entries]
    assert len(names) > 100 and len(names) == len(set(names))
    known = {name for schema in SCHEMAS for name in schema.columns}
    known |= set(re.findall(r"`[+]?([\w.]+)(?:=[^`]*)?`", (ROOT / "docs/configuration.md").read_text()))
    for name, words in entries:
        assert " *Source:* " in " ".join(words.split()), name
        used = re.findall(r"`([^`]+)`", words.partition("*Used in:*")[2])
        for word in [re.sub(r"=.*", "", word).lstrip("+") for word in used]:
            is_file = (ROOT / word).exists() or re.search(r"\.(json|csv|parquet|png)$", word)
            assert is_file or word in known, f"{name}: {word}"


def test_every_claim_says_all_that_a_reader_needs() -> None:
    text = (ROOT / "ARTIFACT.md").read_text()
    rows = re.findall(r"^\| \[(C\d+)\].*\| ([\w ]+) \| ([\w ]+) \|$", text, re.MULTILINE)
    sections = dict(re.findall(r"^### (C\d+) .*\n((?:(?!^#).*\n)*)", text, re.MULTILINE))
    assert [name for name, _, _ in rows] == list(sections) == [f"C{n}" for n in range(1, len(rows) + 1)]
    for section in sections.values():
        assert all(words in section for words in ("```bash\n", "**Expect**", "**Tolerance"))


def table_row(page: str, name: str) -> list[float]:
    """The numbers of a table's row, without what stands behind them in a cell."""
    (line,) = re.findall(rf"^\| {re.escape(name)}(?!\S)[^|]*\|(.*)\|$", (ROOT / page).read_text(), re.MULTILINE)
    cells = [re.sub(r"[,~¹]|[ (\[].*", "", cell.strip()) for cell in line.split("|")]
    return [float(cell) for cell in cells if not cell.isalpha()]  # a table may have columns of text


def test_latencies_are_those_of_the_sample() -> None:
    table = latency_table(load_rows(ROOT / SAMPLE))
    assert len(table) == 10
    for name in table.index:
        assert table_row("README.md", name) == pytest.approx(table.loc[name].to_list(), abs=0.6)
    for name in ("single", "tensor", "sequence", "pipeline"):
        assert table_row("ARTIFACT.md", name) == pytest.approx(table.loc[name, [10, 20, 100]].to_list(), abs=0.6)


@pytest.mark.parametrize(
    ("page", "accuracies"),
    [("docs/results.md", ["accuracy_vit_8_rotation", "accuracy_vit_1"]), ("ARTIFACT.md", ["accuracy_vit_8_rotation"])],
)
def test_speed_ups_and_accuracies_are_those_that_are_kept(page: str, accuracies: list[str]) -> None:
    speedups = speedup_table(load_rows(ROOT / "docs/measured/ablation")).round(2)
    for name in ("paper", "lut", "lut+overlap"):
        assert table_row(page, name) == speedups.loc[f"astra G=1 {name}"].to_list()
    kept = [
        load_rows(ROOT / "docs/measured" / folder).set_index(["devices", "stage"])["change"] for folder in accuracies
    ]
    for devices in (2, 4, 8):
        shown = [changes[devices, stage].item() for changes in kept for stage in ("k-means", "trained")]
        assert table_row(page, str(devices)) == [round(change, 2) for change in shown]


def test_the_readmes_sentences_quote_kept_rows() -> None:
    text = " ".join((ROOT / "README.md").read_text().split())
    speedups = speedup_table(load_rows(ROOT / SAMPLE))
    for name, words in (("auto", "`astra G=1 auto` at 10 Mbps {:.2f} "), ("paper", "`paper` reaches {:.2f} here")):
        assert words.format(speedups.loc[f"astra G=1 {name}", 10]) in text
    for folder, groups in (("accuracy_vit_8_rotation", 8), ("accuracy_vit_1", 1)):
        rows = load_rows(ROOT / "docs/measured" / folder).set_index(["stage", "devices"])
        assert f"{rows['value']['uncompressed', 1]:.2f}% correct" in text
        change, low, high = (rows[name]["trained", 4] for name in ("change", "change_low", "change_high"))
        assert re.search(
            rf"G = {groups} [^.]*by {change:+.2f} points \([^)]*{low:+.2f} to {re.escape(f'{high:+.2f}')}\)", text
        )


def test_the_readmes_python_runs_on_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda self, path: path.write_bytes(b"not a figure"))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    exec(code.replace("results/latest", str(ROOT / SAMPLE)), {})
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"speedup.png", "speedup.pdf"}
