"""Image data sets, read from small files of the same formats, and the errors for missing and damaged files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from testbed.datasets import images
from testbed.datasets.image_files import square
from testbed.datasets.images import FASHION_MNIST, Images, Memory, augment, cifar100, fashion_mnist, image_folder
from testbed.errors import EnvironmentFault

needs_fashion = pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed")


@needs_fashion
def test_the_split_of_fashion_mnist_is_fixed() -> None:
    splits = fashion_mnist()
    assert (len(splits.train), len(splits.validation), len(splits.test), splits.classes) == (54_000, 6_000, 10_000, 10)
    both = torch.cat([splits.train.members, splits.validation.members])
    assert torch.equal(both.sort().values, torch.arange(60_000))
    assert torch.equal(splits.validation.members, fashion_mnist().validation.members)
    pixels, labels = splits.train.batch(torch.arange(2000))
    assert pixels.shape == (2000, 3, 28, 28) and pixels.dtype == torch.float32 and labels.dtype == torch.int64
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert abs(pixels.mean()) < 0.05 and abs(pixels.std() - 1) < 0.05
    assert torch.bincount(splits.test.source.labels).tolist() == [1000] * 10
    assert splits.test.source is not splits.train.source
    larger, _ = splits.test.part(torch.tensor([5, 3])).batch(torch.tensor([1]))
    assert torch.equal(larger, splits.test.batch(torch.tensor([3]))[0])


@needs_fashion
def test_images_are_scaled_to_the_side() -> None:
    pixels, _ = fashion_mnist(side=56).test.batch(torch.arange(3))
    assert pixels.shape == (3, 3, 56, 56)


def numbered() -> torch.Tensor:
    """[40, 2, 6, 5]; the pixels of an image differ from each other, and none is 0."""
    return torch.arange(1, 31, dtype=torch.uint8).view(1, 1, 6, 5).repeat(40, 2, 1, 1)


def test_augmentation_shifts_and_flips_each_image_separately() -> None:
    torch.manual_seed(0)
    images_BCHW, found = numbered(), augment(numbered())
    assert found.shape == images_BCHW.shape and found.dtype == torch.uint8
    padded = torch.nn.functional.pad(images_BCHW[0, 0], [2] * 4)
    crops = [padded[top : top + 6, left : left + 5] for top in range(5) for left in range(5)]
    allowed = [*crops, *(crop.flip(1) for crop in crops)]
    seen = set()
    for image in found:
        assert torch.equal(image[0], image[1])
        matching = [index for index, crop in enumerate(allowed) if torch.equal(image[0], crop)]
        assert len(matching) == 1
        seen.update(matching)
    assert len(seen) > 15 and min(seen) < 25 <= max(seen)


def test_only_training_batches_vary() -> None:
    some = Images(Memory(numbered()[:, :1], torch.arange(40)), torch.arange(40), (0.5,), (0.25,), side=5)
    assert torch.equal(some.batch(torch.arange(9))[0], some.batch(torch.arange(9))[0])
    assert not torch.equal(some.batch(torch.arange(9), True)[0], some.batch(torch.arange(9), True)[0])


def write_idx(path: Path, values: np.ndarray, header: bytes = b"") -> None:
    header = header or bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4) for size in values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def test_missing_and_damaged_idx_files_raise(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="train-images-idx3-ubyte.gz is missing; .*dataset-fashion-mnist"):
        fashion_mnist(folder=tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(path, np.zeros((5, 28, 28), np.uint8))
    with pytest.raises(
        EnvironmentFault, match=r"expected an idx file of bytes \[60000, 28, 28\], 47040016 in all; found"
    ):
        fashion_mnist(folder=tmp_path)
    for content in (path.read_bytes()[:-9], b"no gzip", path.read_bytes()[:12] + b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(EnvironmentFault, match="train-images-idx3-ubyte.gz is damaged"):
            fashion_mnist(folder=tmp_path)


def test_idx_files_are_read_in_order(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / "x.gz", values)
    assert torch.equal(images.read_idx(tmp_path / "x.gz", (2, 3, 4)), torch.from_numpy(values))


def test_cifar_100_in_binary(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, count in (("train", 50_000), ("test", 10_000)):
        records = np.zeros((count, 3074), np.uint8)
        records[:, 0], records[:, 1] = 99, np.arange(count) % 100
        records[:, 2:] = generator.integers(0, 256, 3072, dtype=np.uint8)
        records[7, 2:] = np.repeat([10, 20, 30], 1024)
        records.tofile(tmp_path / f"{name}.bin")
    splits = cifar100(tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test), splits.classes) == (45_000, 5_000, 10_000, 100)
    pixels, labels = splits.test.batch(torch.tensor([7, 205]))
    assert pixels.shape == (2, 3, 32, 32) and labels.tolist() == [7, 5]
    mean, std = torch.tensor(splits.test.mean), torch.tensor(splits.test.std)
    torch.testing.assert_close(pixels[0, :, 3, 4], (torch.tensor([10, 20, 30]) / 255 - mean) / std)
    (tmp_path / "test.bin").write_bytes(b"123")
    with pytest.raises(EnvironmentFault, match="test.bin: expected 30740000 bytes, found 3; unpack cifar-100-binary"):
        cifar100(tmp_path)


def test_pickled_cifar_raises_without_being_opened(tmp_path: Path) -> None:
    (tmp_path / "train").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(EnvironmentFault, match="train: pickles are not opened, .* cifar-100-binary.tar.gz"):
        cifar100(tmp_path)
    assert not Path("opened").exists()
    with pytest.raises(EnvironmentFault, match="train.bin: expected 153700000 bytes, found no file"):
        cifar100(tmp_path / "elsewhere")


def make_folder(root: Path) -> None:
    for part, count in (("train", 10), ("val", 2)):
        for index, name in enumerate(["ant", "bee"]):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (40 + number, 30), (255 * index, 0, 0))
                image.save(root / part / name / f"{number}.png")


def test_a_folder_of_class_folders(tmp_path: Path) -> None:
    make_folder(tmp_path)
    splits = image_folder(tmp_path, side=16)
    assert (len(splits.train), len(splits.validation), len(splits.test), splits.classes) == (18, 2, 4, 2)
    pixels, labels = splits.test.batch(torch.arange(4), augmented=False)
    assert pixels.shape == (4, 3, 16, 16) and labels.tolist() == [0, 0, 1, 1]
    assert pixels[2, 0].min() > 2 and pixels[0, 0].max() < -2
    assert splits.train.batch(torch.arange(18), augmented=True)[0].shape == (18, 3, 16, 16)


def test_unsuitable_folders_raise(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="train: expected one folder for each class, found 0; ImageNet's layout"):
        image_folder(tmp_path)
    make_folder(tmp_path)
    truncated = tmp_path / "val" / "ant" / "0.png"
    truncated.write_bytes(truncated.read_bytes()[:60])
    with pytest.raises(EnvironmentFault, match="0.png: not a usable image .*; replace the file"):
        image_folder(tmp_path, side=8).test.batch(torch.tensor([0]))
    (tmp_path / "val" / "cow").mkdir()
    with pytest.raises(EnvironmentFault, match="val: expected the 2 class folders of train, found 3"):
        image_folder(tmp_path)
    (tmp_path / "train" / "cow").mkdir()
    with pytest.raises(EnvironmentFault, match=r"train/cow: expected images \(.bmp, .jpeg"):
        image_folder(tmp_path)


def test_hidden_and_system_names_are_no_data(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / ".ipynb_checkpoints").mkdir()
        (tmp_path / part / "__MACOSX").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / part / "ant" / ".hidden.png")
    splits = image_folder(tmp_path, side=8)
    assert (len(splits.train) + len(splits.validation), len(splits.test), splits.classes) == (20, 4, 2)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_of_more_than_8_bits_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (8, 8), 40_000).save(tmp_path / "deep.png", format="TIFF")
    with pytest.raises(EnvironmentFault, match=rf"deep.png: not a usable image \(mode {mode}, more than 8 bits"):
        square(tmp_path / "deep.png", 8)


@pytest.mark.parametrize(("name", "label"), [("train", 100), ("test", 255)])
def test_labels_that_no_class_has_are_refused(tmp_path: Path, name: str, label: int) -> None:
    for part, size in (("train", 50_000), ("test", 10_000)):
        records = np.zeros((size, 3074), np.uint8)
        records[-1, 1] = label if part == name else 99
        records.tofile(tmp_path / f"{part}.bin")
    message = rf"{name}\.bin is damaged: it has the label {label}; expected 0 to 99"
    with pytest.raises(EnvironmentFault, match=message):
        cifar100(tmp_path)


def test_pointers_of_git_lfs_are_named(tmp_path: Path) -> None:
    for name in ("train.bin", "train-images-idx3-ubyte.gz"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\n")
    for read, name in ((cifar100, "train.bin"), (lambda folder: fashion_mnist(folder=folder), "train-images")):
        with pytest.raises(EnvironmentFault, match=rf"{name}.* is a Git LFS pointer"):
            read(tmp_path)
