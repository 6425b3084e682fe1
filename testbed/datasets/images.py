"""Labeled images for training: Fashion-MNIST, CIFAR-100, and folders in ImageNet's layout, as batches of tensors.

Fashion-MNIST (Xiao et al., arXiv 1708.07747) comes with the Debian package dataset-fashion-mnist. CIFAR-100
(Krizhevsky, 2009) is read from a local folder in its binary version. Its Python version is a pickle, which can run any
code when it is opened, and is never opened. A gray image becomes three equal channels, because the models take RGB.

Shape suffixes: N images, B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from testbed.datasets.folders import is_data
from testbed.datasets.photographs import CHANNEL_MEAN, CHANNEL_STD
from testbed.errors import EnvironmentFault

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_FIX = "on Debian: apt-get install dataset-fashion-mnist"
CIFAR_FIX = "unpack cifar-100-binary.tar.gz (www.cs.toronto.edu/~kriz/cifar.html) there"
# What converts to RGB without loss of range. Images of more bits would become nearly white.
EIGHT_BIT_MODES = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
)
VALIDATION_SHARE = 0.1  # of the training images
SPLIT_SEED = 20250519  # fixed, so that no experiment validates on images that another one trained on
CROP_PADDING = 2  # pixels
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
DECODER_THREADS = 4  # PIL decodes without the interpreter's lock


class Source(Protocol):
    """Images of one size that can be read by index."""

    @property
    def labels(self) -> Tensor:
        """[N], int64."""
        ...

    def read(self, indices: Tensor) -> Tensor:
        """The images ``indices`` [B], uint8 [B, C, H, W]."""
        ...


@dataclass(frozen=True)
class Memory:
    """Images in memory, uint8 [N, C, H, W]; labels [N], int64."""

    pixels: Tensor
    labels: Tensor

    def read(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


@dataclass(frozen=True)
class Files:
    """Image files, decoded when they are read: the largest center square, scaled to ``side`` x ``side`` pixels."""

    paths: list[Path]
    labels: Tensor
    side: int

    def read(self, indices: Tensor) -> Tensor:
        with ThreadPoolExecutor(DECODER_THREADS) as pool:
            return torch.stack(list(pool.map(self._decode, indices.tolist())))

    def _decode(self, index: int) -> Tensor:
        try:
            with Image.open(self.paths[index]) as image:
                if image.mode not in EIGHT_BIT_MODES:
                    raise ValueError(f"mode {image.mode}, more than 8 bits per channel; convert it to 8 bits")
                width, height = image.size
                short = min(width, height)
                left, top = (width - short) / 2, (height - short) / 2
                box = (left, top, left + short, top + short)
                size = (self.side, self.side)
                scaled = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, box, reducing_gap=3)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what PIL's decoders raise
            raise EnvironmentFault(f"{self.paths[index]}: not a usable image ({error}); replace the file") from error
        return torch.from_numpy(np.array(scaled)).permute(2, 0, 1)


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
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        pixels = read_idx(folder / f"{name}-images-idx3-ubyte.gz", (count, 28, 28))
        labels = read_idx(folder / f"{name}-labels-idx1-ubyte.gz", (count,))
        parts.append(Memory(pixels[:, None], labels.long()))
    return _in_memory(*parts, side=side, classes=10)


def cifar100(folder: Path, side: int = 32) -> Splits:
    """60,000 color images of 32 x 32 pixels, 100 classes, from train.bin and test.bin of the binary version.

    side: pixels to which images are scaled. Raises EnvironmentFault if the files are missing or damaged, or if only the
    pickled version is there.
    """
    parts = []
    for name, count in (("train", 50_000), ("test", 10_000)):
        path, size = folder / f"{name}.bin", count * (2 + 3 * 32 * 32)
        if not path.is_file() and (folder / name).is_file():
            raise EnvironmentFault(f"{folder / name}: pickles are not opened, they can run any code; {CIFAR_FIX}")
        found = path.stat().st_size if path.is_file() else "no file"
        if found != size:
            raise EnvironmentFault(f"{path}: expected {size} bytes, found {found}; {CIFAR_FIX}")
        # A record: coarse class, fine class, then 1024 red, 1024 green and 1024 blue values, row by row.
        records = torch.from_numpy(np.fromfile(path, np.uint8).reshape(count, -1))
        parts.append(Memory(records[:, 2:].unflatten(1, (3, 32, 32)), records[:, 1].long()))
    return _in_memory(*parts, side=side, classes=100)


def image_folder(folder: Path, side: int = 224) -> Splits:
    """ImageNet's layout: ``folder``/train/CLASS/*.jpg, and ``folder``/val/CLASS/*.jpg as the test part.

    side: pixels to which images are scaled. Channels are normalized by ImageNet's mean and standard deviation. Raises
    EnvironmentFault if a part is missing or the parts have different classes.
    """
    classes: list[str] = []
    sources = []
    for name in ("train", "val"):
        part = folder / name
        entries = filter(is_data, part.iterdir()) if part.is_dir() else ()
        found = sorted(path.name for path in entries if path.is_dir())
        if not found or (classes and found != classes):
            expected = f"the {len(classes)} class folders of train" if classes else "one folder for each class"
            raise EnvironmentFault(
                f"{part}: expected {expected}, found {len(found)}; ImageNet's layout is needed there"
            )
        classes = found
        files = [
            [path for path in sorted((part / c).iterdir()) if is_data(path) and path.suffix.lower() in IMAGE_SUFFIXES]
            for c in found
        ]
        if empty := [c for c, paths in zip(found, files, strict=True) if not paths]:
            raise EnvironmentFault(f"{part / empty[0]}: expected images ({', '.join(sorted(IMAGE_SUFFIXES))})")
        labels = torch.arange(len(files)).repeat_interleave(torch.tensor([len(paths) for paths in files]))
        sources.append(Files([path for paths in files for path in paths], labels, side))
    return _split(*sources, mean=CHANNEL_MEAN, std=CHANNEL_STD, side=side, classes=len(classes))


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
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise EnvironmentFault(f"{path} is missing; {FASHION_MNIST_FIX}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise EnvironmentFault(f"{path} is damaged ({error}); {FASHION_MNIST_FIX}") from error
    expected = len(header) + int(np.prod(shape))
    if not content.startswith(header) or len(content) != expected:
        message = f"expected an idx file of bytes {list(shape)}, {expected} in all; found {len(content)} bytes"
        raise EnvironmentFault(f"{path}: {message}; {FASHION_MNIST_FIX}")
    return torch.tensor(np.frombuffer(content, np.uint8, offset=len(header))).view(shape)
