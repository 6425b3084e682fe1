"""Labeled pictures for training: Fashion-MNIST, CIFAR-100, and folders of class folders, as batches of tensors.

Fashion-MNIST (Xiao et al., arXiv 1708.07747) comes with the Debian package dataset-fashion-mnist. CIFAR-100
(Krizhevsky 2009) is read in its binary version, from a local folder; the version for Python is a pickle, which can run
any program when it is opened, and is refused. Grey pictures become three equal channels, as the models take RGB.

Shape suffixes: N pictures, B batch, C channels, H rows, W columns.
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

from testbed.datasets.photographs import CHANNEL_MEAN, CHANNEL_STD
from testbed.errors import EnvironmentFault

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_FIX = "on Debian: apt-get install dataset-fashion-mnist"
CIFAR_FIX = "unpack cifar-100-binary.tar.gz (www.cs.toronto.edu/~kriz/cifar.html) there"
VALIDATION_SHARE = 0.1  # of the training pictures
SPLIT_SEED = 20250519  # fixed, so that no experiment validates on pictures that another trained on
CROP_PADDING = 2  # pixels
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
DECODERS = 4  # threads; PIL decodes without the interpreter's lock


class Source(Protocol):
    """Images of one size that can be read by index."""

    @property
    def labels(self) -> Tensor:
        """[N], int64."""
        ...

    def read(self, indices: Tensor) -> Tensor:
        """uint8 [B, C, H, W] of the pictures ``indices``."""
        ...


@dataclass(frozen=True)
class Memory:
    """All pictures in memory, uint8 [N, C, H, W]; labels [N], int64."""

    pixels: Tensor
    labels: Tensor

    def read(self, indices: Tensor) -> Tensor:
        return self.pixels[indices]


@dataclass(frozen=True)
class Files:
    """Picture files, decoded when they are read: the largest center square, scaled to ``side`` pixels."""

    paths: list[Path]
    labels: Tensor
    side: int

    def read(self, indices: Tensor) -> Tensor:
        with ThreadPoolExecutor(DECODERS) as pool:
            return torch.stack(list(pool.map(self._decode, indices.tolist())))

    def _decode(self, index: int) -> Tensor:
        try:
            with Image.open(self.paths[index]) as picture:
                width, height = picture.size
                short = min(width, height)
                left, top = (width - short) / 2, (height - short) / 2
                box = (left, top, left + short, top + short)
                size = (self.side, self.side)
                scaled = picture.convert("RGB").resize(size, Image.Resampling.BICUBIC, box, reducing_gap=3)
        except (OSError, SyntaxError, ValueError) as error:  # whatever PIL's decoders raise
            raise EnvironmentFault(f"{self.paths[index]}: not a whole picture ({error}); replace the file") from error
        return torch.from_numpy(np.array(scaled)).permute(2, 0, 1)


@dataclass(frozen=True)
class Images:
    """Some pictures of a source, as model input: normalized, three channels, ``side`` x ``side`` pixels."""

    source: Source
    members: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int

    def __len__(self) -> int:
        return len(self.members)

    def batch(self, indices: Tensor, augmented: bool = False) -> tuple[Tensor, Tensor]:
        """(pixels [B, 3, side, side], labels [B]) of the pictures ``indices`` among these.

        augmented: random crop and mirror, by the global random generator.
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
        """Only the pictures at these positions."""
        return replace(self, members=self.members[positions])


@dataclass(frozen=True)
class Splits:
    """Training and validation pictures of a data set's training part, and its test part, which is for reports only."""

    train: Images
    validation: Images
    test: Images
    classes: int


def augment(pixels_BCHW: Tensor) -> Tensor:
    """Each picture moved by up to ``CROP_PADDING`` pixels over black, and mirrored with even odds."""
    batch, _, height, width = pixels_BCHW.shape
    padded = F.pad(pixels_BCHW, [CROP_PADDING] * 4)
    top_B, left_B = torch.randint(2 * CROP_PADDING + 1, (2, batch))
    columns_BW = left_B[:, None] + torch.arange(width)
    columns_BW = torch.where(torch.rand(batch, 1) < 0.5, columns_BW.flip(1), columns_BW)
    rows_BH = top_B[:, None] + torch.arange(height)
    picture_B11 = torch.arange(batch)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picture_B11, rows_BH[:, :, None], columns_BW[:, None]].permute(0, 3, 1, 2)


def fashion_mnist(side: int = 28, folder: Path = FASHION_MNIST) -> Splits:
    """70,000 gray 28 x 28 pictures of 10 classes. Raises EnvironmentFault if a file is missing or damaged."""
    parts = []
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        pixels = _idx(folder / f"{name}-images-idx3-ubyte.gz", (count, 28, 28))
        labels = _idx(folder / f"{name}-labels-idx1-ubyte.gz", (count,))
        parts.append(Memory(pixels[:, None], labels.long()))
    return _in_memory(*parts, side=side, classes=10)


def cifar100(folder: Path, side: int = 32) -> Splits:
    """60,000 color 32 x 32 pictures of 100 classes, from train.bin and test.bin of the binary version.

    Raises EnvironmentFault if they are missing or damaged, or only the pickled version is there.
    """
    parts = []
    for name, count in (("train", 50_000), ("test", 10_000)):
        path, size = folder / f"{name}.bin", count * (2 + 3 * 32 * 32)
        if not path.is_file() and (folder / name).is_file():
            raise EnvironmentFault(f"{folder / name}: pickles are not opened, they can run any program; {CIFAR_FIX}")
        found = path.stat().st_size if path.is_file() else "no file"
        if found != size:
            raise EnvironmentFault(f"{path}: expected {size} bytes, found {found}; {CIFAR_FIX}")
        # a record: coarse class, fine class, then 1024 red, green and blue values, row by row
        records = torch.from_numpy(np.fromfile(path, np.uint8).reshape(count, -1))
        parts.append(Memory(records[:, 2:].unflatten(1, (3, 32, 32)), records[:, 1].long()))
    return _in_memory(*parts, side=side, classes=100)


def image_folder(folder: Path, side: int = 224) -> Splits:
    """ImageNet's layout: ``folder``/train/CLASS/*.jpg and ``folder``/val/CLASS/*.jpg, the latter as test.

    Images are normalized by ImageNet's channels. Raises EnvironmentFault if a part is missing or has other classes.
    """
    classes: list[str] = []
    sources = []
    for name in ("train", "val"):
        part = folder / name
        found = sorted(path.name for path in part.iterdir() if path.is_dir()) if part.is_dir() else []
        if not found or (classes and found != classes):
            expected = f"the {len(classes)} class folders of train" if classes else "one folder for each class"
            raise EnvironmentFault(
                f"{part}: expected {expected}, found {len(found)}; ImageNet's layout is needed there"
            )
        classes = found
        files = [
            [path for path in sorted((part / c).iterdir()) if path.suffix.lower() in PICTURE_SUFFIXES] for c in found
        ]
        if empty := [c for c, paths in zip(found, files, strict=True) if not paths]:
            raise EnvironmentFault(f"{part / empty[0]}: expected pictures ({', '.join(sorted(PICTURE_SUFFIXES))})")
        labels = torch.arange(len(files)).repeat_interleave(torch.tensor([len(paths) for paths in files]))
        sources.append(Files([path for paths in files for path in paths], labels, side))
    return _split(*sources, mean=CHANNEL_MEAN, std=CHANNEL_STD, side=side, classes=len(classes))


def _in_memory(train: Memory, test: Memory, side: int, classes: int) -> Splits:
    """The splits, normalized by the channels of all training pictures."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for values in train.pixels.unbind(1):
        share = torch.bincount(values.flatten(), minlength=256) / values.numel()
        means.append(float((share * levels).sum()))
        stds.append(float((share * (levels - means[-1]).square()).sum().sqrt()))
    return _split(train, test, tuple(means), tuple(stds), side, classes)


def _split(train: Source, test: Source, mean: Sequence[float], std: Sequence[float], side: int, classes: int) -> Splits:
    """Validation pictures are drawn from the training part, always the same."""
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out = round(VALIDATION_SHARE * len(order))
    everything = Images(train, order, tuple(mean), tuple(std), side)
    return Splits(
        train=everything.part(torch.arange(held_out, len(order))),
        validation=everything.part(torch.arange(held_out)),
        test=replace(everything, source=test, members=torch.arange(len(test.labels))),
        classes=classes,
    )


def _idx(path: Path, shape: tuple[int, ...]) -> Tensor:
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
