"""Image files in ImageNet's layout: which files a folder holds for which class, and how a file becomes a square.

What has several meanings is refused with the name of the file: transparent pixels, whose color depends on a background;
more than 8 bits per channel, which would become nearly white; and animations and documents of several pages. The
orientation that a camera has written (Exif) is applied.

Shape suffixes: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from testbed.datasets.folders import content_hash, contents, warn_of_unread
from testbed.errors import EnvironmentFault

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
# What a file may hold, whatever its suffix says. Other decoders of PIL are not tried: that of EPS starts a program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
SEVERAL_VIEWS = "MPO"  # a kind of JPEG whose further images are previews or depth maps of the first one
# What converts to RGB without loss of range.
EIGHT_BIT_MODES = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
)
DECODER_THREADS = 4  # PIL decodes without the interpreter's lock


@dataclass(frozen=True)
class Files:
    """Image files, decoded when they are read: the largest center square, scaled to ``side`` x ``side`` pixels.

    labels: [N], int64, of each path.
    """

    paths: list[Path]
    labels: Tensor
    side: int

    def read(self, indices: Tensor) -> Tensor:
        """The images ``indices`` [B], uint8 [B, 3, side, side]. Raises EnvironmentFault for an unusable file."""
        with ThreadPoolExecutor(DECODER_THREADS) as pool:
            return torch.stack(list(pool.map(lambda index: square(self.paths[index], self.side), indices.tolist())))

    def hashes(self, indices: Tensor) -> list[bytes]:
        """A hash of the file of each image, which is decoded too. Raises EnvironmentFault for an unusable file."""

        def checked(index: int) -> bytes:
            found = content_hash(self.paths[index])
            square(self.paths[index], self.side)
            return found

        with ThreadPoolExecutor(DECODER_THREADS) as pool:
            return list(pool.map(checked, indices.tolist()))

    def name(self, index: int) -> str:
        """The path of an image."""
        return str(self.paths[index])


def square(path: Path, side: int) -> Tensor:
    """The largest center square of an image file, scaled: uint8 [3, side, side]. EnvironmentFault if it is unusable."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            _refuse_ambiguous(image)
            ImageOps.exif_transpose(image, in_place=True)
            width, height = image.size
            short = min(width, height)
            left, top = (width - short) / 2, (height - short) / 2
            box = (left, top, left + short, top + short)
            scaled = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box, reducing_gap=3)
    except Exception as error:  # decoders raise classes without a common base
        reason = " ".join(str(error).split()) or type(error).__name__
        raise EnvironmentFault(f"{path}: not a usable image ({reason}); replace the file") from error
    return torch.from_numpy(np.array(scaled)).permute(2, 0, 1)


def _refuse_ambiguous(image: Image.Image) -> None:
    """Raise ValueError for what the conversion to 8-bit RGB would change without a word."""
    if image.mode not in EIGHT_BIT_MODES:
        raise ValueError(f"mode {image.mode}, more than 8 bits per channel; convert it to 8 bits")
    if image.format != SEVERAL_VIEWS and (frames := getattr(image, "n_frames", 1)) > 1:
        raise ValueError(f"{frames} frames or pages; save one of them")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise ValueError("transparent pixels; lay it on a background and save it without transparency")


def class_folders(folder: Path, side: int) -> tuple[Files, Files, int]:
    """(``folder``/train/CLASS/*.jpg, the same of val, number of classes). No image is opened.

    Warns of files that are no images. Raises EnvironmentFault if a part or a class has no images, if the parts have
    different classes, and for folders inside those of classes.
    """
    classes: list[str] = []
    parts: list[Files] = []
    unread: list[Path] = []
    for name in ("train", "val"):
        part = folder / name
        others, found = contents(part)
        unread += others
        names = [path.name for path in found]
        if not names or (classes and names != classes):
            expected = f"the {len(classes)} class folders of train" if classes else "one folder for each class"
            differing = ", ".join(map(ascii, sorted(set(names) ^ set(classes))[:3]))
            which = f" (they differ in {differing})" if classes else ""
            raise EnvironmentFault(
                f"{part}: expected {expected}, found {len(names)}{which}; ImageNet's layout is needed there"
            )
        classes = names
        _refuse_equal_names(part, classes)
        files = [_images(path, unread) for path in found]
        labels = torch.arange(len(files)).repeat_interleave(torch.tensor([len(paths) for paths in files]))
        parts.append(Files([path for paths in files for path in paths], labels, side))
    warn_of_unread(folder, unread, f"images ({', '.join(SUFFIXES)}) in the folders of their classes")
    return parts[0], parts[1], len(classes)


def _images(class_folder: Path, unread: list[Path]) -> list[Path]:
    """The images of one class. Other files are added to ``unread``."""
    files, folders = contents(class_folder)
    if folders:
        raise EnvironmentFault(f"{folders[0]}: a folder in the folder of a class, which must hold its images itself")
    found = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not found:
        raise EnvironmentFault(f"{class_folder}: expected images ({', '.join(SUFFIXES)})")
    unread += [path for path in files if path.suffix.lower() not in SUFFIXES]
    return found


def _refuse_equal_names(part: Path, names: list[str]) -> None:
    """Raise EnvironmentFault for two classes whose names some file systems hold for the same."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            same = f"the folders {ascii(other)} and {ascii(name)} differ only in case or in the form of letters"
            raise EnvironmentFault(f"{part}: {same}; rename or merge them")
