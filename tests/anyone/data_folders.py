"""Folders of images and of texts as users have them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from tests.test_git_lfs import POINTER

MODES = ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I", "I;16", "F", "YCbCr", "PA", "HSV", "LAB"]
SUFFIXES = [".png", ".jpg", ".PNG", ".bmp", ".webp", ".tiff", ".gif", ".jpeg"]
SIZES = [(1, 1), (8, 8), (9, 3), (1, 40), (64, 2), (1, 2000), (300, 300)]
CLASSES = ["a", "b", "B", "é", "e\u0301", ".hidden", "class one", "0", "[x]", "__MACOSX", "c\nd", "\udcff", "NA"]
PARTS = ["train", "val"]
BYTES = [
    b"",
    POINTER.encode(),
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"%!PS-Adobe\n",
    b"\xff\xd8\xff",
    b"<svg/>",
    b"\x80\x04.",
]
TEXTS = [
    "a b c d " * 40,
    "words. " * 200,
    "é日本 " * 60,
    "\ufeffwith a mark " * 20,
    "x\x00y" * 90,
    "line\r\nline\r" * 40,
]
TEXTS += ["", " \n\t", "\u2028" * 50, "a" * 3000, "\U0001f600" * 50, "<|endoftext|>" * 30]
RAW_TEXTS = [
    b"\xff\xfeh\x00i\x00" * 40,
    b"\xff\xff\xff",
    b"caf\xe9 " * 40,
    POINTER.encode(),
    b"\xef\xbb\xbf",
    b"\x80" * 500,
]
TEXT_NAMES = [
    "a.txt",
    "b.TXT",
    ".c.txt",
    "d.md",
    "e é.txt",
    "f",
    "g\nh.txt",
    "\udcff.txt",
    "NA.txt",
    "=.txt",
    "x" * 250 + ".txt",
]
KINDS = ["file", "folder", "loop", "dangling", "pipe", "socket", "same"]


@dataclass(frozen=True)
class Entry:
    """An entry of a folder. kind: a file with this content, or something that is none."""

    name: str
    content: bytes
    kind: str = "file"

    def make(self, folder: Path) -> None:
        """Write it. A name that the folder already has, or that the file system refuses, is left out."""
        path = folder / self.name
        try:
            if os.path.lexists(path):
                return
            if self.kind == "file":
                path.write_bytes(self.content)
            elif self.kind == "folder":
                path.mkdir()
                (path / "inner.txt").write_bytes(self.content)
            elif self.kind == "pipe":
                os.mkfifo(path)
            else:
                targets = {"loop": self.name, "dangling": "/nowhere", "socket": "/dev/null", "same": "."}
                path.symlink_to(targets[self.kind])
        except OSError:
            return


@st.composite
def image_contents(draw: st.DrawFn) -> bytes:
    """The content of an image file: of many modes and formats, sometimes cut off or animated."""
    mode, size = draw(st.sampled_from(MODES)), draw(st.sampled_from(SIZES))
    kind = draw(st.sampled_from(["PNG", "PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF"]))
    values = np.random.default_rng(draw(st.integers(0, 3))).integers(0, 256, (size[1], size[0], 4), np.uint8)
    image = Image.fromarray(values, "RGBA")
    image = image.convert("L").convert(mode) if mode in ("I", "I;16", "F", "PA", "LA", "1") else image.convert(mode)
    stream = BytesIO()
    try:
        image.save(
            stream, kind, **({"save_all": True, "append_images": [image]} if draw(st.integers(0, 9)) == 9 else {})
        )
    except (OSError, KeyError, ValueError):
        image.convert("RGB").save(stream, kind)
    content = stream.getvalue()
    return content if draw(st.integers(0, 4)) else content[: draw(st.integers(0, len(content)))]


def entries(names: st.SearchStrategy[str], contents: st.SearchStrategy[bytes]) -> st.SearchStrategy[Entry]:
    """Mostly files; sometimes a folder, a link or a pipe."""
    kinds = st.sampled_from(["file"] * 60 + KINDS)
    return st.builds(Entry, names, contents, kinds)


def plain(first: int) -> st.SearchStrategy[Entry]:
    """A small image of one color, of 100 colors from ``first`` on."""
    return st.integers(first, first + 99).map(lambda value: Entry(f"{value}.png", flat(value)))


ODD = entries(
    st.tuples(st.integers(0, 99), st.sampled_from([*SUFFIXES, ".txt", "", ".npy"])).map(
        lambda pair: f"{pair[0]}{pair[1]}"
    ),
    image_contents() | st.sampled_from(BYTES),
)


def flat(value: int) -> bytes:
    """A small PNG of one color."""
    stream = BytesIO()
    Image.new("RGB", (8, 8), (value, 255 - value, 7)).save(stream, "PNG")
    return stream.getvalue()


@st.composite
def image_folders(draw: st.DrawFn) -> dict[str, list[Entry]]:
    """Folder below data.folder -> its entries. Mostly two classes with a few small images, and with odd ones."""
    few = st.lists(st.sampled_from(CLASSES), unique=True, max_size=4)
    classes = draw(few if draw(st.integers(0, 4)) == 0 else st.just(["a", "b"]))
    odd_images, odd_entries = draw(st.booleans()), draw(st.integers(0, 9)) == 0
    folders: dict[str, list[Entry]] = {}
    for first, part in enumerate(PARTS):
        for name in classes if draw(st.integers(0, 29)) else []:
            items = draw(st.lists(plain(100 * first), min_size=3, max_size=6, unique_by=lambda entry: entry.name))
            folders[f"{part}/{name}"] = items + draw(st.lists(ODD, max_size=2 * odd_images))
        folders[part] = draw(st.lists(ODD, max_size=1)) if odd_entries else []
    return folders


TEXT = st.sampled_from(TEXTS).map(lambda text: text.encode("utf-8", "surrogatepass")) | st.sampled_from(RAW_TEXTS)
GOOD = st.integers(0, 10**6).map(lambda i: f"{i} sheep and {i * 7 % 1000} goats ".encode() * 12)


@st.composite
def text_folders(draw: st.DrawFn) -> dict[str, list[Entry]]:
    """A folder of texts: mostly thirty good ones, sometimes with odd ones, sometimes few."""
    many = draw(st.sampled_from([30, 30, 30, 1, 0]))
    good = [Entry(f"part {i}.txt", draw(GOOD)) for i in range(many)]
    return {"": good + draw(st.lists(entries(st.sampled_from(TEXT_NAMES), TEXT | GOOD), max_size=3))}


def make(folders: dict[str, list[Entry]], root: Path) -> Path:
    """Write the folders."""
    root.mkdir()
    for name, items in folders.items():
        folder = root / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        for entry in items:
            entry.make(folder)
    return root
