"""Labeled images for training: Fashion-MNIST, CIFAR-100, and folders in ImageNet's layout, as batches of tensors.

Fashion-MNIST (Xiao et al., arXiv 1708.07747) comes with the Debian package dataset-fashion-mnist. CIFAR-100
(Krizhevsky, 2009) is read from a local folder in its binary version. Its Python version is a pickle, which can run any
code when it is opened, and is never opened. A gray image becomes three equal channels, because the models take RGB.

Shape suffixes: N images, B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from testbed.datasets.image_files import class_folders
from testbed.datasets.photographs import CHANNEL_MEAN, CHANNEL_STD
from testbed.errors import EnvironmentFault, printable
from testbed.git_lfs import PULL, is_pointer
from testbed.user_files import read_file

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_FIX = "on Debian: apt-get install dataset-fashion-mnist"
IDX_FILES = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
CIFAR_FILES = ("train.bin", "test.bin")
CIFAR_FIX = "unpack cifar-100-binary.tar.gz (www.cs.toronto.edu/~kriz/cifar.html) there"
VALIDATION_SHARE = 0.1  # of the training images
FEWEST_TRAINING_IMAGES = math.floor(0.5 / VALIDATION_SHARE) + 1  # so that one of them or more is for validation
SPLIT_SEED = 20250519  # fixed, so that no experiment validates on images that another one trained on
CROP_PADDING = 2  # pixels
CHECKED_AT_ONCE = 256  # images


class Source(Protocol):
    """Images of one size that can be read by index."""

    @property
    def labels(self) -> Tensor:
        """[N], int64."""
        ...

    def read(self, indices: Tensor) -> Tensor:
        """The images ``indices`` [B], uint8 [B, C, H, W]."""
        ...

    def hashes(self, indices: Tensor) -> list[bytes]:
        """A hash of the content of each image. Raises EnvironmentFault for an image that cannot be read."""
        ...

    def name(self, index: int) -> str:
        """How a message names an image."""
        ...


@dataclass(frozen=True)
class Memory:
    """Images in memory, uint8 [N, C, H, W]; labels [N], int64."""

    pixels: Tensor
    labels: Tensor

    def read(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]

    def hashes(self, indices: Tensor) -> list[bytes]:
        return [hashlib.sha256(pixels_CHW.numpy().tobytes()).digest() for pixels_CHW in self.pixels[indices]]

    def name(self, index: int) -> str:
        return f"image {index}"


@dataclass(frozen=True)
class Images:
    """Some images of a source as model input: normalized, three channels, ``side`` x ``side`` pixels.

    members: indices of these images in the source. mean, std: of each channel, for values from 0 to 1.
    """

    source: Source
    members: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int

    def __len__(self) -> int:
        return len(self.members)

    def batch(self, indices: Tensor, augmented: bool = False) -> tuple[Tensor, Tensor]:
        """(pixels [B, 3, side, side], labels [B]) of the images at ``indices`` [B] of ``members``.

        augmented: random crop and flip, from torch's global random generator.
        """
        chosen = self.members[indices]
        pixels_BCHW = self.source.read(chosen)
        if augmented:
            pixels_BCHW = augment(pixels_BCHW)
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        x_BCHW = (pixels_BCHW / 255 - mean) / std
        if x_BCHW.shape[-1] != self.side:
            x_BCHW = F.interpolate(x_BCHW, size=(self.side, self.side), mode="bilinear", align_corners=False)
        return x_BCHW.expand(-1, 3, -1, -1), self.source.labels[chosen]

    def part(self, positions: Tensor) -> Images:
        """Only the images at these positions of ``members``."""
        return replace(self, members=self.members[positions])


@dataclass(frozen=True)
class Splits:
    """Training and validation images from the training part of a data set, and its test part, for reports only."""

    train: Images
    validation: Images
    test: Images
    classes: int


def augment(pixels_BCHW: Tensor) -> Tensor:
    """Each image shifted by up to ``CROP_PADDING`` pixels with black padding, and flipped with probability 1/2."""
    batch, _, height, width = pixels_BCHW.shape
    padded = F.pad(pixels_BCHW, [CROP_PADDING] * 4)
    top_B, left_B = torch.randint(2 * CROP_PADDING + 1, (2, batch))
    columns_BW = left_B[:, None] + torch.arange(width)
    columns_BW = torch.where(torch.rand(batch, 1) < 0.5, columns_BW.flip(1), columns_BW)
    rows_BH = top_B[:, None] + torch.arange(height)
    image_B11 = torch.arange(batch)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image_B11, rows_BH[:, :, None], columns_BW[:, None]].permute(0, 3, 1, 2)


def fashion_mnist(side: int = 28, folder: Path = FASHION_MNIST) -> Splits:
    """70,000 gray images of 28 x 28 pixels, 10 classes.

    side: pixels to which images are scaled. Raises EnvironmentFault if a file is missing or damaged.
    """
    parts = []
    for (images, labeling), count in ((IDX_FILES[:2], 60_000), (IDX_FILES[2:], 10_000)):
        pixels = read_idx(folder / images, (count, 28, 28))
        path = folder / labeling
        labels = read_idx(path, (count,))
        _check_labels(path, labels, 10)
        parts.append(Memory(pixels[:, None], labels.long()))
    return _in_memory(*parts, side=side, classes=10)


def cifar100(folder: Path, side: int = 32) -> Splits:
    """60,000 color images of 32 x 32 pixels, 100 classes, from train.bin and test.bin of the binary version.

    side: pixels to which images are scaled. Raises EnvironmentFault if the files are missing or damaged, or if only the
    pickled version is there.
    """
    parts = []
    for name, count in zip(CIFAR_FILES, (50_000, 10_000), strict=True):
        path, size = folder / name, count * (2 + 3 * 32 * 32)
        try:
            if not path.is_file() and (pickle := path.with_suffix("")).is_file():
                raise EnvironmentFault(f"{pickle}: pickles are not opened, they can run any code; {CIFAR_FIX}")
            if is_pointer(path):
                raise EnvironmentFault(f"{path} {PULL}")
            found = path.stat().st_size if path.is_file() else "no file"
            if found != size:
                raise EnvironmentFault(f"{path}: expected {size} bytes, found {found}; {CIFAR_FIX}")
            # A record: coarse class, fine class, then 1024 red, 1024 green and 1024 blue values, row by row.
            records = torch.from_numpy(np.fromfile(path, np.uint8).reshape(count, -1))
        except OSError as error:
            raise EnvironmentFault(f"{path} cannot be read: {error.strerror}") from error
        _check_labels(path, records[:, 1], 100)
        parts.append(Memory(records[:, 2:].unflatten(1, (3, 32, 32)), records[:, 1].long()))
    return _in_memory(*parts, side=side, classes=100)


def image_folder(folder: Path, side: int = 224) -> Splits:
    """ImageNet's layout: ``folder``/train/CLASS/*.jpg, and ``folder``/val/CLASS/*.jpg as the test part.

    side: pixels to which images are scaled. Channels are normalized by ImageNet's mean and standard deviation. Raises
    EnvironmentFault if a part is missing, the parts have different classes, or train has too few images for a
    validation part. Images are opened when they are read; see ``check_images``.
    """
    train, test, classes = class_folders(folder, side)
    if len(train.labels) < FEWEST_TRAINING_IMAGES:
        share = f"{VALIDATION_SHARE:.0%} of them are for validation"
        need = f"{FEWEST_TRAINING_IMAGES} or more images, because {share}"
        raise EnvironmentFault(f"{folder / 'train'}: expected {need}; found {len(train.labels)}")
    return _split(train, test, mean=CHANNEL_MEAN, std=CHANNEL_STD, side=side, classes=classes)


def check_images(splits: Splits, progress: Callable[[int, int], None]) -> str:
    """Read every image once, so that an unusable one ends a run before its work. Returns a hash of images and labels.

    progress(done, total): called after each batch. Images are not kept in memory. Warns of test images that are in the
    training part too. Raises EnvironmentFault for an unusable image, and if no test image is left that is not in the
    training part.
    """
    parts = (splits.train, splits.validation, splits.test)
    digest, seen, known = hashlib.sha256(), set[bytes](), list[int]()
    done, total = 0, sum(map(len, parts))
    for part in parts:
        for members in part.members.split(CHECKED_AT_ONCE):
            hashes = part.source.hashes(members)
            digest.update(b"".join(hashes) + part.source.labels[members].numpy().tobytes())
            if part is splits.test:
                known += [index for index, found in zip(members.tolist(), hashes, strict=True) if found in seen]
            else:
                seen.update(hashes)
            done += len(members)
            progress(done, total)
        digest.update(b"end of part")
    if known:
        which = f"{len(known)} of {len(splits.test)} test images are training images too, as "
        which += splits.test.source.name(known[0])
        if len(known) == len(splits.test):
            raise EnvironmentFault(f"{which}; no image is left that the model has not seen in training")
        warnings.warn(printable(f"{which}; accuracies include what the model has seen in training"), stacklevel=2)
    return digest.hexdigest()


def _check_labels(path: Path, labels_N: Tensor, classes: int) -> None:
    if (largest := int(labels_N.max())) >= classes:
        raise EnvironmentFault(f"{path} is damaged: it has the label {largest}; expected 0 to {classes - 1}")


def _in_memory(train: Memory, test: Memory, side: int, classes: int) -> Splits:
    """The splits, normalized by the mean and standard deviation of each channel over all training images."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for values in train.pixels.unbind(1):
        share = torch.bincount(values.flatten(), minlength=256) / values.numel()
        means.append(float((share * levels).sum()))
        stds.append(float((share * (levels - means[-1]).square()).sum().sqrt()))
    return _split(train, test, tuple(means), tuple(stds), side, classes)


def _split(train: Source, test: Source, mean: Sequence[float], std: Sequence[float], side: int, classes: int) -> Splits:
    """The splits; validation images are drawn from the training part with a fixed seed."""
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out = round(VALIDATION_SHARE * len(order))
    everything = Images(train, order, tuple(mean), tuple(std), side)
    return Splits(
        train=everything.part(torch.arange(held_out, len(order))),
        validation=everything.part(torch.arange(held_out)),
        test=replace(everything, source=test, members=torch.arange(len(test.labels))),
        classes=classes,
    )


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A gzipped idx file of bytes: two zero bytes, type 8, number of dimensions, sizes as big-endian int32, values."""
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4) for size in shape)
    if is_pointer(path):
        raise EnvironmentFault(f"{path} {PULL}")
    try:
        content = gzip.decompress(read_file(path))
    except FileNotFoundError:
        raise EnvironmentFault(f"{path} is missing; {FASHION_MNIST_FIX}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise EnvironmentFault(f"{path} is damaged ({error}); {FASHION_MNIST_FIX}") from error
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error.strerror}") from error
    expected = len(header) + int(np.prod(shape))
    if not content.startswith(header) or len(content) != expected:
        message = f"expected an idx file of bytes {list(shape)}, {expected} in all; found {len(content)} bytes"
        raise EnvironmentFault(f"{path}: {message}; {FASHION_MNIST_FIX}")
    return torch.tensor(np.frombuffer(content, np.uint8, offset=len(header))).view(shape)
