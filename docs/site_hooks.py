"""MkDocs hooks: pages of the site whose sources are not pages in docs/.

They are README.md and ARTIFACT.md, the notebooks, the report of the sample run, and files of the repository that pages
link to. Links are rewritten for the site, so that documents keep the relative links that work in the repository.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

from analysis.report.write import write_pages
from analysis.runs import read_run

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "ARTIFACT.md")
NOTEBOOKS = "notebooks"
SAMPLE = "notebooks/sample/bandwidth_sweep"
SOURCES = "repository"  # folder of the site for files that pages link to
NOTEBOOK_S = 300
LARGEST_BYTES = 100_000  # a longer file is named, not shown
LEXERS = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".csv": "text"}
# Code comes first, so that brackets in it are no links. Then: text, target, anchor of a link or an image.
CODE_OR_LINK = re.compile(
    r"^ *(?P<fence>```+).*?^ *(?P=fence)|(?P<ticks>`+)(?!`).*?(?<!`)(?P=ticks)(?!`)"
    r"|(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)",
    re.MULTILINE | re.DOTALL,
)

log = logging.getLogger("mkdocs.site_hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/, and one for each file of the repository that a page links to."""
    for name in DOCUMENTS:
        files.append(File.generated(config, name.lower(), content=(ROOT / name).read_text(encoding="utf-8")))
    for path in sorted((ROOT / NOTEBOOKS).glob("*.ipynb")):
        _add_notebook(path, files, config)
    _add_report(files, config)
    linked = {target for file in _pages(files) for target in _targets(file) if _in_site(target, files) is None}
    for target in sorted(linked):
        if (ROOT / target).exists():
            text = _listing(target, files) if (ROOT / target).is_dir() else _source(target)
            page = f"{SOURCES}/{target}.md"
            files.append(File.generated(config, page, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    config.nav = _expanded(config.nav or [], files)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make a document's links to files of the repository links to pages of the site; others stay as they are."""
    here = page.file.src_uri
    folder = posixpath.dirname(_in_repository(here))

    def rewritten(found: re.Match[str]) -> str:
        if found["target"] is None:
            return found[0]
        there = _in_site(posixpath.normpath(posixpath.join(folder, found["target"])), files)
        if there is None:  # MkDocs reports it
            return found[0]
        return f"{found['text']}({posixpath.relpath(there, posixpath.dirname(here) or '.')}{found['anchor'] or ''})"

    return CODE_OR_LINK.sub(rewritten, markdown)


def _pages(files: Files) -> list[File]:
    return [file for file in files.documentation_pages() if not file.src_uri.startswith(("report/", f"{SOURCES}/"))]


def _in_repository(src_uri: str) -> str:
    """Where the source of a page lies in the repository."""
    document = next((name for name in DOCUMENTS if name.lower() == src_uri), None)
    if document or src_uri.startswith(f"{NOTEBOOKS}/"):
        return document or src_uri
    return f"docs/{src_uri}"


def _in_site(target: str, files: Files) -> str | None:
    """The site's file for a path of the repository; None if there is none."""
    if target in DOCUMENTS:
        names = [target.lower()]
    elif target.startswith(f"{NOTEBOOKS}/") and target.endswith(".ipynb"):
        names = [target.removesuffix(".ipynb") + ".md"]
    else:
        inside = posixpath.relpath(target, "docs") if target.startswith("docs/") else ""
        names = [inside, f"{inside}/index.md", f"{inside}/README.md"] if inside else []
    for name in [*names, f"{SOURCES}/{target}.md"]:
        file = files.get_file_from_path(name)
        if file is not None and not file.inclusion.is_excluded():
            return name
    return None


def _targets(file: File) -> set[str]:
    """Paths in the repository that a page links to."""
    folder = posixpath.dirname(_in_repository(file.src_uri))
    links = [found["target"] for found in CODE_OR_LINK.finditer(file.content_string) if found["target"]]
    paths = {posixpath.normpath(posixpath.join(folder, link)) for link in links}
    return {path for path in paths if path != "." and not path.startswith(("..", "/"))}


def _add_notebook(path: Path, files: Files, config: MkDocsConfig) -> None:
    """A notebook as a page, with what its cells show where ``extra.run_notebooks`` is set."""
    notebook: Any = nbformat.read(path, as_version=4)
    if config.extra["run_notebooks"]:
        log.info("running %s", path.name)
        where = {"metadata": {"path": path.parent}}
        quiet = ["--log-level=ERROR"]  # a kernel warns that its local connection is not encrypted
        client = NotebookClient(
            notebook, timeout=NOTEBOOK_S, kernel_name="python3", resources=where, extra_arguments=quiet
        )
        client.execute()
    text, resources = MarkdownExporter().from_notebook_node(notebook)
    text = text.replace('<table border="1" class="dataframe">', "<table>")  # the theme styles tables without a class
    for name, content in resources["outputs"].items():
        image = f"{path.stem}_{name}"
        text = text.replace(f"({name})", f"({image})")
        files.append(File.generated(config, f"{NOTEBOOKS}/{image}", content=content))
    files.append(File.generated(config, f"{NOTEBOOKS}/{path.stem}.md", content=text))


def _add_report(files: Files, config: MkDocsConfig) -> None:
    """The report of the sample run: as a page with its figures, and as the one file that ``make report`` writes."""
    with TemporaryDirectory() as folder:
        out = Path(folder)
        written = write_pages([read_run(ROOT / SAMPLE)], out)
        for path in written:
            content: str | bytes = path.read_bytes()
            if path.name == "tables.md":
                _, _, rest = path.read_text(encoding="utf-8").partition("\n")
                content = (
                    "# Report of the sample run\n\n"
                    f"The rows are those of `{SAMPLE}`. The same report [as one file](report.html) needs nothing beside"
                    f" it; `make report ARGS={SAMPLE}` writes it.\n{rest}"
                )
            files.append(File.generated(config, f"report/{path.relative_to(out).as_posix()}", content=content))


def _source(target: str) -> str:
    """A page that shows one file of the repository."""
    content = (ROOT / target).read_bytes()
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {target}\n\n"
    if b"\0" in content or len(content) > LARGEST_BYTES:
        return f"{head}This file of the repository has {len(content):,} bytes and is not shown here.\n"
    return f"{head}``````{LEXERS.get(Path(target).suffix, 'text')}\n{content.decode()}\n``````\n"


def _listing(target: str, files: Files) -> str:
    """A page that lists one folder of the repository."""
    lines = [f"---\nsearch:\n  exclude: true\n---\n\n# {target}/\n"]
    for path in sorted((ROOT / target).iterdir()):
        if path.name.startswith(("__", ".")):
            continue
        name = path.relative_to(ROOT).as_posix()
        page = _in_site(name, files)
        up = posixpath.relpath(page, posixpath.dirname(f"{SOURCES}/{target}.md")) if page else ""
        shown = f"`{path.name}{'/' if path.is_dir() else ''}`"
        lines.append(f"- [{shown}]({up})" if page else f"- {shown}")
    return "\n".join(lines) + "\n"


def _expanded(nav: list[Any], files: Files) -> list[Any]:
    """The navigation with the pages that match in place of a pattern with ``*``."""
    names = sorted(file.src_uri for file in files.documentation_pages())

    def expanded(entry: Any) -> Any:
        if isinstance(entry, dict):
            return {title: expanded(below) for title, below in entry.items()}
        if isinstance(entry, list):
            return [expanded(below) for below in entry]
        if "*" not in entry:
            return entry
        return [name for name in names if Path(name).match(entry) and name.count("/") == entry.count("/")]

    return expanded(nav)
