"""The accuracy experiment end to end on synthetic images that a small model learns in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from analysis.accuracy import accuracy_tables, results
from analysis.load import load_rows
from analysis.report.write import write_report
from experiments import accuracy_common, accuracy_vit
from testbed.config.load import load_config
from testbed.config.schema import AccuracyConfig
from testbed.datasets.images import Images, Memory, Splits
from testbed.errors import ConfigError, EnvironmentFault, TestbedError
from testbed.results.run_folder import RunFolder
from testbed.results.schema import ACCURACY

SMALL = ["model.layers=2", "model.hidden=24", "model.heads=3", "model.patch=4", "model.classes=4", "data.side=16"]
SMALL += [
    "uncompressed={epochs: 12, batch: 64, learning_rate: 0.003}",
    "codebook_sizes=8",
    "devices=[1,4]",
    "groups=[1,2]",
]
SMALL += ["training={epochs: 3, batch: 64, learning_rate: 0.003}"]


def synthetic(count: int, seed: int) -> Images:
    """Noisy patterns, the same four for every seed."""
    patterns = torch.randint(256, (4, 3, 16, 16), generator=torch.Generator().manual_seed(7))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=draw)
    noise = torch.randint(-110, 110, (count, 3, 16, 16), generator=draw)
    pixels = (patterns[labels] + noise).clamp(0, 255).to(torch.uint8)
    return Images(Memory(pixels, labels), torch.arange(count), (0.5,) * 3, (0.3,) * 3, 16)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AccuracyConfig:
    splits = Splits(synthetic(512, 1), synthetic(128, 2), synthetic(400, 3), 4)
    monkeypatch.setattr(accuracy_vit, "fashion_mnist", lambda side: splits)
    monkeypatch.setattr(accuracy_common, "CACHE", tmp_path / "cache")
    config = load_config(["+experiment=accuracy_vit", *SMALL, f"results_dir={tmp_path}"])
    assert isinstance(config, AccuracyConfig)
    return config


def test_every_variant_is_evaluated_on_every_number_of_devices(
    small: AccuracyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        folder = RunFolder(tmp_path, "accuracy_vit", "abc", ACCURACY)
        assert accuracy_vit.run(small, "", folder) == 0
    finally:
        torch.set_num_threads(threads)
    rows = folder.rows()
    assert len(rows) == 1 + 2 * 2 * 2 and (rows["status"] == "ok").all()
    assert len(folder.points()) == len(rows)
    baseline = rows[rows["stage"] == "uncompressed"].iloc[0]
    assert baseline["value"] > 60 and baseline["change"] == 0
    one = rows[(rows["devices"] == 1) & (rows["stage"] == "k-means")]
    assert (one["change"] == 0).all()  # nothing is sent, so nothing is quantized
    change = rows[rows["devices"] == 4].set_index(["stage", "groups"])["change"]
    assert change["trained", 1] > change["k-means", 1]  # 8 codewords lose much, and fine-tuning wins some of it back
    assert (rows["bits_per_token"] == rows["groups"].where(rows["groups"] > 0, 256) * 3).all()

    # a second run has nothing to do
    monkeypatch.setattr(accuracy_common, "train", lambda *_, **__: pytest.fail("trained again"))
    assert accuracy_vit.run(small, "", folder) == 0

    table = results(load_rows(folder.path))
    assert set(table["label"]) == {"", "G=1 K=8", "G=2 K=8"}
    assert any(path.stem == "quality" for path in write_report(folder.path))
    (grid,) = accuracy_tables(load_rows(folder.path))
    assert [row[0] for row in grid.rows] == ["uncompressed", *["G=1 K=8"] * 2, *["G=2 K=8"] * 2]


def test_a_failed_training_fails_its_variant_only(small: AccuracyConfig, tmp_path: Path) -> None:
    small.training.learning_rate, small.groups, small.uncompressed.epochs = 1e30, [1], 1
    folder = RunFolder(tmp_path, "accuracy_vit", "abc", ACCURACY)
    assert accuracy_vit.run(small, "", folder) == 1
    rows = folder.rows()
    failed = rows[rows["status"] == "failed"]
    assert set(failed["stage"]) == {"trained"} and failed["error"].str.contains("learning rate").all()
    assert (rows["status"] == "ok").sum() == 3  # the baseline, and k-means on two numbers of devices


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("trained_on=4-x", "trained_on=4-x: must be N or N-M"),
        ("class_tokens=none", "class_tokens=none: must be one of distributed, single"),
        ("preset=cii", "preset=cii: unknown; did you mean ci?"),
        ("bandwidths=10", "bandwidths=10: unknown"),
        ("noises=-1", "noises=-1: must be numbers from 0 to 10"),
    ],
)
def test_bad_input_names_the_key(word: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(["+experiment=accuracy_vit", word])
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"groups": [5]}, "groups=5: must be a positive divisor"),
        ({"codebook_sizes": [12]}, "codebook_sizes=12: must be a power of two"),
        ({"devices": [17]}, "devices=17: must be at most 16"),
        ({"trained_on": ["4-20"]}, "trained_on=4-20: must be at most 16"),
    ],
)
def test_what_does_not_fit_is_found_before_any_training(
    small: AccuracyConfig, tmp_path: Path, change: dict[str, list], text: str
) -> None:
    for key, value in change.items():
        setattr(small, key, value)
    with pytest.raises(TestbedError) as error:
        accuracy_vit.run(small, "", RunFolder(tmp_path, "accuracy_vit", "abc", ACCURACY))
    assert text in str(error.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("section", "key", "value", "text"),
    [
        ("uncompressed", "batch", 2000, "uncompressed.batch=2000: must be 1 to 512, the number of training examples"),
        ("training", "batch", 600, "training.batch=600: must be 1 to 512, the number of training examples"),
        ("model", "patch", 32, "model.patch=32: must divide data.side=16"),
        ("data", "train_examples", 600, "data.train_examples=600: fashion_mnist has 512"),
        ("", "codebook_sizes", [16384], "codebook_sizes=16384: must be 8192 at most: 512 training images have 16 tok"),
    ],
)
def test_numbers_that_do_not_fit_the_images_are_found_before_any_training(
    small: AccuracyConfig, tmp_path: Path, section: str, key: str, value: object, text: str
) -> None:
    setattr(getattr(small, section) if section else small, key, value)
    with pytest.raises(ConfigError) as error:
        accuracy_vit.run(small, "", RunFolder(tmp_path, "accuracy_vit", "abc", ACCURACY))
    assert text in str(error.value)
    assert not (tmp_path / "cache").exists()


def pictured(small: AccuracyConfig, root: Path) -> AccuracyConfig:
    """The configuration with images of a folder: ten of each class for training, two for the test."""
    for part, count in (("train", 10), ("val", 2)):
        for name in "abcd":
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.random.default_rng([ord(name), number, count]).integers(256, size=(16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number}.png")
    small.data.name, small.data.folder = "image_folder", str(root)
    small.uncompressed.batch = small.training.batch = 8
    return small


def test_a_damaged_test_image_ends_the_run_before_the_training(
    small: AccuracyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = pictured(small, tmp_path / "images"), RunFolder(tmp_path, "accuracy_vit", "abc", ACCURACY)
    monkeypatch.setattr(accuracy_common, "train", lambda *_, **__: pytest.fail("trained before the images were read"))
    last = tmp_path / "images" / "val" / "d" / "1.png"
    last.write_bytes(last.read_bytes()[:-200])
    with pytest.raises(EnvironmentFault, match=r"val/d/1\.png: not a usable image"):
        accuracy_vit.run(config, "", folder)
    assert folder.rows().empty


def test_other_images_in_the_same_folder_are_trained_on_anew(
    small: AccuracyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = pictured(small, tmp_path / "images"), RunFolder(tmp_path, "accuracy_vit", "abc", ACCURACY)
    trained_in: list[Path] = []

    def train(*arguments: Any, **_: Any) -> None:
        trained_in.append(arguments[4])
        raise TestbedError("enough")

    monkeypatch.setattr(accuracy_common, "train", train)
    (tmp_path / "images" / "train" / "a" / "note.txt").write_text("no image, so without effect")
    for change in range(3):
        with pytest.raises(TestbedError, match="enough"), pytest.warns(UserWarning, match="1 entries are not read"):
            accuracy_vit.run(config, "", folder)
        if change == 1:
            path = tmp_path / "images" / "train" / "a" / "0.png"
            Image.open(path).rotate(90).save(path)
    assert trained_in[0] == trained_in[1] != trained_in[2]


def test_an_uncompressed_baseline_that_diverges_ends_the_run(small: AccuracyConfig, tmp_path: Path) -> None:
    small.uncompressed.learning_rate, small.groups, small.uncompressed.epochs = 1e30, [1], 1
    folder = RunFolder(tmp_path, "accuracy_vit", "abc", ACCURACY)
    with pytest.raises(TestbedError, match=r"lower uncompressed\.learning_rate=1e\+30"):
        accuracy_vit.run(small, "", folder)
    assert folder.rows().empty
