"""The documentation builds as a site without a warning, and its pages request nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
BUILD_S = 240
SHOWN = (
    *("index", "readme", "artifact", "configuration", "measured/index", "notebooks/01_bandwidth_sweep"),
    "report/tables",
)
# Attributes whose address a browser requests when it opens a page. It follows those of <a> only when a person clicks.
REQUESTING = {"src", "srcset", "poster", "data", "background", "xlink:href"}
STYLE_ADDRESS = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])((?:https?:)?//[^"')\s]+)""")
SCRIPT_ADDRESS = re.compile(r"""["'`]((?:https?:)?//[\w$][^"'`\s]*)""")
SCRIPT_COMMENT = re.compile(r"/\*.*?\*/|^\s*//.*$", re.DOTALL | re.MULTILINE)
# Addresses in scripts of the theme, and why they are not requested here.
NOT_REQUESTED = (
    "http://www.w3.org/",  # name spaces of XML
    "https://unpkg.com/mermaid@",  # only on pages with a diagram of Mermaid; the test allows none
    "https://unpkg.com/resize-observer-polyfill",  # only in browsers without ResizeObserver
    "https://api.github.com/",  # only with repo_url in mkdocs.yml
    "https://${",  # the same for GitLab
)
PAGE_OF_API = {
    "methods": ["testbed.methods.base.Method"],
    "groups": ["testbed.comm.group.Group"],
    "networks": ["testbed.network.backend.Network"],
    "session": ["testbed.session.Session"],
    "models": ["testbed.models.decoder.Decoder", "testbed.models.vit.VisionTransformer"],
    "results": ["analysis.load.load_rows", "analysis.points.points", "analysis.latency.speedup_plot"],
}


class Requests(HTMLParser):
    """Collects the addresses of other hosts that a browser requests when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        given = {name: value or "" for name, value in attrs}
        names = REQUESTING | ({"href"} if tag in ("link", "image", "use", "base") else set())
        if tag == "link" and given.get("rel") == "canonical":
            names = REQUESTING
        for name in names & given.keys():
            self.found += [word for word in given[name].split() if re.match(r"(https?:)?//", word)]
        self.found += STYLE_ADDRESS.findall(given.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            self.found += STYLE_ADDRESS.findall(data)
        if self.inside == "script":
            self.found += requests_of_script(data)


def requests_of_script(text: str) -> list[str]:
    """Addresses of other hosts among a script's strings, without those that ``NOT_REQUESTED`` names."""
    found = SCRIPT_ADDRESS.findall(SCRIPT_COMMENT.sub("", text))
    return [address for address in found if not address.startswith(NOT_REQUESTED)]


def requests(name: str, text: str) -> list[str]:
    """Addresses of other hosts that a file of the site makes a browser request."""
    if name.endswith(".css"):
        return STYLE_ADDRESS.findall(text)
    if name.endswith(".js"):
        return requests_of_script(text)
    parser = Requests()
    parser.feed(text)
    return parser.found


def entries(html: str) -> Counter[str]:
    """How many items of lists and cells of tables a page has."""
    return Counter(re.findall(r"<(li|th|td)\b", html))


def check_lists_and_tables(site: Path) -> None:
    """Those of a page are those that GitHub shows: its Markdown needs no empty line before a list, the site's does."""
    github = MarkdownIt("gfm-like", {"linkify": False})
    written = [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "api"]
    places = {path: path.relative_to(ROOT / "docs").with_suffix(".html") for path in written}
    places |= {ROOT / name: Path(name.lower()).with_suffix(".html") for name in ("README.md", "ARTIFACT.md")}
    for path, place in places.items():
        page = (site / str(place).replace("README", "index")).read_text()
        shown = page[page.index("<article") : page.index("</article>")]
        hint = "no empty line before a list, or a line of text that starts with a number and a period?"
        assert entries(shown) == entries(github.render(path.read_text())), f"{path}: {hint}"


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("a.html", '<script src="https://x.org/a.js"></script><img src="//x.org/a.png">', 2),
        ("a.html", '<link rel="stylesheet" href="https://x.org/a.css"><link rel="preconnect" href="https://x.org">', 2),
        ("a.html", '<style>@import "https://x.org/a.css";</style><p style="background: url(//x.org/a)">', 2),
        ("a.html", '<script>fetch("https://x.org/a.json")</script><iframe src="http://x.org"></iframe>', 2),
        ("a.html", '<a href="https://x.org">x</a><img src="a.png"><link rel="canonical" href="https://x.org">', 0),
        ("a.css", "p { src: url('https://x.org/a.woff2') } q { background: url(data:image/svg+xml,http://w3.org) }", 1),
        ("a.js", "/* from https://x.org */ import('https://x.org/a.js'); const a = '//'", 1),
    ],
)
def test_requests_are_found(name: str, text: str, count: int) -> None:
    assert len(requests(name, text)) == count


@pytest.mark.slow
def test_the_site_builds_strictly_and_requests_nothing(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    # tests/test_notebooks.py runs the notebooks.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SITE_RUN_NOTEBOOKS": "false", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, done.stderr
    for page in SHOWN:
        assert (site / f"{page}.html").is_file(), page
    for page, names in PAGE_OF_API.items():
        text = (site / "api" / f"{page}.html").read_text()
        assert all(f'id="{name}"' in text for name in names), page
    check_lists_and_tables(site)
    kept = {path.suffix for path in site.rglob("*") if path.is_file()}
    assert not kept & {".parquet", ".csv", ".py"}
    for path in site.rglob("*"):
        if path.suffix in (".html", ".css", ".js") and path.name != "search_index.js":  # the index is text of pages
            text = path.read_text()
            assert not requests(path.name, text), path
            assert 'class="mermaid"' not in text, path
