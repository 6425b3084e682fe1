"""Token windows: order, splits, the cache, errors."""

import hashlib
import os
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from testbed.datasets import token_windows
from testbed.datasets.corpora import CORPORA, corpus_named, held_out
from testbed.datasets.token_windows import windows
from testbed.errors import ConfigError, EnvironmentFault


def byte_tokenizer() -> Tokenizer:
    """A tokenizer with one token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


BYTES = byte_tokenizer()


def article(i: int) -> str:
    """100 bytes that share no long part with another article."""
    return f"naïve {hashlib.sha256(str(i).encode()).hexdigest()} {hashlib.md5(str(i).encode()).hexdigest()[:28]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for i in range(60):
        (tmp_path / "texts" / f"Article {i}.txt").write_text(article(i), encoding="utf-8")
    return tmp_path / "texts"


def test_windows_are_parts_of_the_documents(folder: Path, tmp_path: Path):
    found = windows("text", BYTES, tmp_path, length=10, split="train", folder=folder)
    assert found.dtype == torch.int64 and found.shape[1] == 10
    texts = [BYTES.decode(ids) for ids in found.tolist()]
    documents = sum(not held_out(f"Article {i}") for i in range(60))
    assert len(article(7).encode()) == 100 and len(texts) == documents * 102 // 10
    assert sum("\n\nna" in text for text in texts) > 5  # documents are joined by an empty line
    everything = "".join(article(i) for i in range(60))
    assert sum(text in everything for text in texts) > len(texts) / 2


def test_fewer_windows_are_the_first_of_more(folder: Path, tmp_path: Path):
    few, more = (windows("text", BYTES, tmp_path, 16, count, "train", folder) for count in (3, 40))
    assert few.shape == (3, 16) and torch.equal(few, more[:3])
    assert len(more.unique(dim=0)) == 40  # none twice


def test_splits_share_no_window(folder: Path, tmp_path: Path):
    train, kept = (windows("text", BYTES, tmp_path, 30, None, split, folder) for split in ("train", "held_out"))
    assert len(train) > len(kept) > 0
    assert not set(map(tuple, train.tolist())) & set(map(tuple, kept.tolist()))


def test_a_corpus_is_tokenized_once(folder: Path, tmp_path: Path, monkeypatch):
    first = windows("text", BYTES, tmp_path, 16, None, "train", folder)
    monkeypatch.setattr(token_windows, "documents", lambda *a: pytest.fail("the corpus was tokenized again"))
    assert torch.equal(windows("text", BYTES, tmp_path, 16, None, "train", folder), first)
    monkeypatch.undo()
    (cached,) = tmp_path.glob("tokens-*.safetensors")
    cached.write_bytes(cached.read_bytes()[:-3])
    with pytest.warns(UserWarning, match="is damaged"):
        assert torch.equal(windows("text", BYTES, tmp_path, 16, None, "train", folder), first)


def test_changed_files_or_another_tokenizer_are_tokenized_again(folder: Path, tmp_path: Path):
    first = windows("text", BYTES, tmp_path, 16, None, "train", folder)
    other = byte_tokenizer()
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not torch.equal(windows("text", other, tmp_path, 16, 20, "train", folder), first[:20])
    (folder / "Article 0.txt").write_text("Changed entirely, and longer than before, by some words.")
    (folder / "Article 1.txt").write_text("So is this one, whichever of them is in this split.")
    assert len(windows("text", BYTES, tmp_path, 16, None, "train", folder)) != len(first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "data.length=1: must be 2 or more"),
        ({"count": 0}, "data.windows=0: train of text has 1"),
        ({"count": 10_000}, "data.windows=10000: train of text has 1"),
        (
            {"length": 10_000},
            "data.length=10000: train of text has ",
        ),
    ],
)
def test_impossible_windows_raise(folder: Path, tmp_path: Path, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        windows("text", BYTES, tmp_path, split="train", folder=folder, **options)


def test_a_byte_order_mark_and_hidden_files_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfplain words")
    (tmp_path / ".b.txt").write_text("a swap file")
    files = corpus_named("text", "train").locate("train", tmp_path, tmp_path)
    assert [path.name for path in files] == ["a.txt"]
    assert list(CORPORA["text"].read(files)) == [("a", "plain words")]


def test_other_content_of_the_same_size_and_time_is_tokenized_again(folder: Path, tmp_path: Path):
    first = windows("text", BYTES, tmp_path, 16, None, "train", folder)
    path, before = folder / "Article 0.txt", (folder / "Article 0.txt").stat()
    path.write_bytes(path.read_bytes()[::-1].replace(b"\xaf\xc3", "ï".encode()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert not torch.equal(windows("text", BYTES, tmp_path, 16, None, "train", folder), first)


def test_a_pointer_of_git_lfs_is_no_text(folder: Path, tmp_path: Path):
    (folder / "Article 3.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(EnvironmentFault, match=r"Article 3.txt is a Git LFS pointer, .*git lfs pull"):
        windows("text", BYTES, tmp_path, 16, None, "train", folder)
    assert not list(tmp_path.glob("tokens-*"))


def test_progress_of_tokenizing_is_shown_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        windows("text", BYTES, tmp_path, 16, None, "train", folder)
    assert re.fullmatch(r"tokenizing \d+ documents of text\n", capsys.readouterr().out)
