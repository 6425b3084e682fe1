"""Any folder of images or texts: rows, or one line that names the file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.datasets.images import cifar100
from testbed.results.schema import ACCURACY
from tests.anyone.command import count, examples, refusal, rows_below, tried
from tests.anyone.data_folders import BYTES, Entry, image_folders, make, text_folders
from tests.anyone.model_folders import NAMES
from tests.tiny_llama import save_tiny_llama

VIT = ["+experiment=accuracy_vit", "data=image_folder", "data.side=8", "model.patch=4", "model.layers=1"]
VIT += ["model.hidden=8", "model.heads=2", "groups=1", "codebook_sizes=2", "devices=2", "trained_on=2"]
VIT += ["uncompressed={epochs: 1, batch: 2}", "training={epochs: 1, batch: 2}"]
LM = ["+experiment=accuracy_lm", "model=hub_folder", "data=text_folder", "data.length=16", "data.windows=2"]
LM += ["data.codebook_windows=4", "groups=2", "codebook_sizes=4", "anchor_tokens=0", "devices=2", "quantized=residual"]

VARIANTS = ["pre_rotations=pca", "num_quantizers=2", "int8_tokens=1", "objectives=distill", "gradients=rotation_trick"]
VARIANTS += ["noises=10", "class_tokens=single", "trained_on=1-4", "training.learning_rate=1e30", "commitments=10"]

Folders = dict[str, list[Entry]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@examples(12)
@given(image_folders(), st.sampled_from(NAMES), st.sampled_from([0] * 9 + [1]), st.sampled_from(VARIANTS))
def test_images(folders: Folders, name: str, more: int, variant: str) -> None:
    classes = more + sum("train/" in path and not path.startswith(("train/.", "train/__")) for path in folders)
    with tempfile.TemporaryDirectory() as place:
        data = make(folders, Path(place) / name)
        words = [f"data.folder={data}", f"model.classes={max(classes, 1)}", f"results_dir={place}/results"]
        ending = tried("image folders, accuracy", [*VIT, *words, variant])
        if ending.code == 0:
            rows = rows_below(Path(place) / "results", ACCURACY)
            assert (rows["status"] == "ok").all() and rows["value"].between(0, 100).all()


@examples(15)
@given(text_folders(), st.sampled_from(NAMES))
def test_texts(llama: Path, folders: Folders, name: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        data = make(folders, Path(place) / name)
        words = [f"model.folder={llama}", f"data.folder={data}", f"results_dir={place}/results"]
        ending = tried("text folders, perplexity", [*LM, *words])
        if ending.code == 0:
            rows = rows_below(Path(place) / "results", ACCURACY)
            assert (rows["status"] == "ok").all() and (rows["value"] >= 1).all()


@examples(4)
@given(st.sampled_from(["train", "train.bin", "test.bin"]), st.sampled_from(BYTES))
def test_cifar_is_never_unpickled(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / name).write_bytes(content)
        error = refusal(lambda: cifar100(Path(place)))
        assert error is not None and str(place) in str(error)
        count("CIFAR-100 folders", "one line")
