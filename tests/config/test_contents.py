"""A signature knows files and folders by what they hold: replaced ones get another results folder, moved ones not."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from testbed import run
from testbed.config.contents import content_hashes
from testbed.config.load import load_config
from testbed.config.schema import SCHEMAS, DecoderLatencyConfig
from testbed.errors import ConfigError, EnvironmentFault
from testbed.grid import config_signature
from tests.tiny_llama import edit_weights, save_tiny_llama

DECODER = ["+experiment=decoder_sweep", "model=hub_folder", "network=analytic", "tokens=16", "devices=2"]
DECODER += ["astra.groups=1", "bandwidths=10"]
TEXTS = ["+experiment=accuracy_lm", "data=text_folder", "data.length=16"]
IMAGES = ["+experiment=accuracy_vit", "data.name=image_folder", "model.patch=4", "model.classes=2", "data.side=16"]


def signature(*words: str) -> str:
    return config_signature(load_config(list(words)))


def of_model(folder: Path) -> str:
    return signature(*DECODER, f"model.folder={folder}")


def test_a_model_is_known_by_its_weights_and_its_name(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "tiny")
    before = of_model(folder)
    (folder / "README.md").write_text("not read, so without effect")
    (folder / "pytorch_model.bin").write_bytes(b"not read either")
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(folder, tmp_path / "elsewhere" / "tiny")
    assert of_model(folder) == of_model(tmp_path / "elsewhere" / "tiny") == before
    assert of_model(shutil.copytree(folder, tmp_path / "other name")) != before  # rows have the name in column model
    norm = torch.ones(24)
    norm[-1] = 1 + 2**-20
    for edited in ({"model__norm__weight": norm}, {"model__norm__weight": torch.ones(24)}):
        seen = of_model(folder)
        edit_weights(folder, **edited)
        assert of_model(folder) != seen
    seen = of_model(folder)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    assert of_model(folder) != seen


def test_shards_count_and_what_their_index_does_not_name_does_not(tmp_path: Path) -> None:
    folder = save_tiny_llama(tmp_path / "tiny")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "part.safetensors"}}')
    before = of_model(folder)
    (folder / "unused.safetensors").write_bytes(b"x")
    assert of_model(folder) == before
    with (folder / "part.safetensors").open("ab") as file:
        file.write(b"x")
    assert of_model(folder) != before


def test_a_checkpoint_is_known_by_its_content_alone(tmp_path: Path) -> None:
    one, other = tmp_path / "astra.safetensors", tmp_path / "moved.safetensors"
    words = ["+experiment=smoke", "tokens=49"]
    missing = signature(*words, f"checkpoint={one}")
    one.write_bytes(b"a" * 100_000)
    before = signature(*words, f"checkpoint={one}")
    assert len({missing, before, signature(*words)}) == 3
    shutil.copyfile(one, other)
    assert signature(*words, f"checkpoint={other}") == before
    one.write_bytes(b"a" * 99_999 + b"b")  # of the same size
    assert signature(*words, f"checkpoint={one}") != before


def test_texts_are_known_by_the_files_that_are_read(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("one sheep")
    words = [*TEXTS, f"data.folder={texts}"]
    before = signature(*words)
    (texts / "notes.md").write_text("not read")
    assert signature(*words) == before
    (texts / "a.txt").write_text("two sheep")
    assert signature(*words) != before
    seen = signature(*words)
    (texts / "a.txt").rename(texts / "b.txt")  # the hash of a title decides in which part it is
    assert signature(*words) != seen


def test_images_are_known_by_the_files_that_are_read(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    for part, name in ((part, name) for part in ("train", "val") for name in "ab"):
        (tmp_path / part / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng([ord(name), number]).integers(256, size=(16, 16, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / part / name / f"{number}.png")
    words = [*IMAGES, f"data.folder={tmp_path}"]
    before = signature(*words)
    (tmp_path / "train" / "a" / "note.txt").write_text("no image")
    assert signature(*words) == before and not recwarn.list  # the run itself warns of it
    path = tmp_path / "val" / "b" / "4.png"
    Image.open(path).rotate(90).save(path)
    assert signature(*words) != before
    seen = signature(*words)
    (tmp_path / "train" / "a" / "0.png").rename(tmp_path / "train" / "b" / "9.png")  # another label
    assert signature(*words) != seen


def test_data_files_in_their_usual_place_count_too(tmp_path: Path) -> None:
    words = ["+experiment=accuracy_vit", f"data.folder={tmp_path}"]
    found = {signature(*words)}
    for name in ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "README"):
        (tmp_path / name).write_bytes(b"x")
        found.add(signature(*words))
    assert len(found) == 3


def test_a_configuration_that_names_nothing_has_no_contents() -> None:
    assert content_hashes(load_config(["+experiment=smoke"])) == {}
    assert content_hashes(load_config(["+experiment=fidelity"])) == {}


def test_a_folder_that_its_loader_refuses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data.folder=.*/none: expected a folder with files \*.txt$"):
        signature(*TEXTS, f"data.folder={tmp_path}/none")
    with pytest.raises(EnvironmentFault, match=r"train: expected one folder for each class"):
        signature(*IMAGES, f"data.folder={tmp_path}")
    (tmp_path / "a.txt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(EnvironmentFault, match=r"a\.txt is a Git LFS pointer"):
        signature(*TEXTS, f"data.folder={tmp_path}")


def test_a_replaced_model_is_not_continued_but_measured_in_another_folder(tmp_path: Path) -> None:
    folder, results = save_tiny_llama(tmp_path / "tiny"), tmp_path / "results"
    words = [*DECODER, f"model.folder={folder}", f"results_dir={results}"]
    assert run.main(words) == run.main(words) == 0
    assert len(list(results.glob("decoder_sweep/*/results.parquet"))) == 1
    edit_weights(folder, model__norm__weight=2 * torch.ones(24))
    assert run.main(words) == 0
    assert len(list(results.glob("decoder_sweep/*/results.parquet"))) == 2


def paths(schema: type, prefix: str = "") -> set[str]:
    """Keys of files and folders."""
    found, kinds = set(), get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(kind := kinds[field.name]) and isinstance(kind, type):
            found |= paths(kind, f"{prefix}{field.name}.")
        elif field.metadata.get("path"):
            found.add(f"{prefix}{field.name}")
    return found


def test_no_key_of_a_file_or_a_folder_is_forgotten() -> None:
    """A new key fails here until ``content_hashes`` knows it."""
    named = set().union(*map(paths, (*SCHEMAS.values(), DecoderLatencyConfig)))
    assert named == {"results_dir", "checkpoint", "model.folder", "data.folder"}
