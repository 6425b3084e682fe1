"""Reading a user's file ends, whatever stands under its name."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from testbed.config.load import load_config
from testbed.datasets.corpora import corpus_named, documents
from testbed.datasets.images import read_idx
from testbed.errors import ConfigError, EnvironmentFault
from testbed.git_lfs import is_pointer
from testbed.models.hub import hub_tokenizer, hub_without_weights
from testbed.models.tensor_files import UnusableFile, read_tensors
from testbed.user_files import open_file, read_file
from tests.tiny_llama import save_tiny_llama

ENDLESS = "it is a pipe or a device, not a file"
SWEEP = ["+experiment=decoder_sweep", "model=hub_folder"]


def put_pipe(path: Path) -> Path:
    """Opening it to read would wait for somebody who writes."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def test_files_are_read_and_folders_and_pipes_and_devices_are_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_file(tmp_path / "link") == b"abc"
    for path, reason in (
        (put_pipe(tmp_path / "pipe"), ENDLESS),
        (Path("/dev/zero"), ENDLESS),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file or directory"),
    ):
        with pytest.raises(OSError, match=reason):
            open_file(path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_pipe_in_a_model_folder_is_named(tmp_path: Path, name: str) -> None:
    folder = save_tiny_llama(tmp_path / "hub")
    put_pipe(folder / name)
    line = f"model.folder={folder}: {name} cannot be read: {ENDLESS}"
    with pytest.raises(ConfigError, match=re.escape(line)):
        hub_without_weights(folder) if name == "config.json" else hub_tokenizer(folder)
    if name == "config.json":
        with pytest.raises(ConfigError, match=re.escape(line)):
            load_config([*SWEEP, f"model.folder={folder}"])


def test_a_pipe_among_weights_texts_and_images_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnusableFile, match=f"w cannot be read: {ENDLESS}"):
        read_tensors(put_pipe(tmp_path / "w"))
    with pytest.raises(EnvironmentFault, match=f"idx cannot be read: {ENDLESS}"):
        read_idx(put_pipe(tmp_path / "idx"), (1,))
    put_pipe(tmp_path / "wiki.test.raw")
    files = corpus_named("wikitext-103", "held_out").locate("held_out", tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=f"wiki.test.raw cannot be read: {ENDLESS}"):
        documents("wikitext-103", "held_out", files)
    assert not is_pointer(tmp_path / "w")
