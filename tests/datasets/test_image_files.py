"""Image files: what a folder holds for which class, and that every unusable file is found before any work."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from testbed.datasets import folders
from testbed.datasets.image_files import square
from testbed.datasets.images import Splits, check_images, image_folder
from testbed.errors import EnvironmentFault

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"


def noise(side: int = 12, seed: int = 0) -> Image.Image:
    pixels = torch.randint(256, (side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.numpy())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes: ten different training images of each, two test images."""
    for part, count in (("train", 10), ("val", 2)):
        for index, name in enumerate(["ant", "bee"]):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                noise(seed=1000 * index + 100 * (part == "val") + number).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def check(splits: Splits) -> str:
    return check_images(splits, lambda done, total: None)


def several(format: str) -> Callable[[Path], None]:
    return lambda path: noise().save(path, format=format, save_all=True, append_images=[noise(seed=1)])


def transparent(path: Path) -> None:
    image = noise().convert("RGBA")
    image.putpixel((3, 3), (255, 0, 0, 254))
    image.save(path, format="PNG")


def palette(path: Path) -> None:
    noise().quantize(8).save(path, format="PNG", transparency=0)


def huge(path: Path) -> None:
    """The beginning of a PNG of 20,000 x 20,000 pixels of 1 bit."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0), b"IDAT"]
    framed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


UNUSABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a truncated file": (lambda path: path.write_bytes(path.read_bytes()[:-60]), r"not a usable image"),
    "an empty file": (lambda path: path.write_bytes(b""), r"not a usable image \(cannot identify image file"),
    "a text": (lambda path: path.write_text("no image"), r"not a usable image \(cannot identify image file"),
    "EPS": (lambda path: noise().save(path, format="EPS"), r"not a usable image \(cannot identify image file"),
    "a pointer of Git LFS": (lambda path: path.write_bytes(POINTER), r"is a Git LFS pointer.*git lfs pull"),
    "a decompression bomb": (huge, r"not a usable image .*decompression bomb"),
    "an animated PNG": (several("PNG"), r"not a usable image \(2 frames or pages; save one of them\)"),
    "an animated WebP": (several("WEBP"), r"not a usable image \(2 frames or pages"),
    "an animated GIF": (several("GIF"), r"not a usable image \(2 frames or pages"),
    "pages of TIFF": (several("TIFF"), r"not a usable image \(2 frames or pages"),
    "a transparent pixel": (transparent, r"not a usable image \(transparent pixels; lay it on a background"),
    "a transparent palette": (palette, r"not a usable image \(transparent pixels"),
    "16 bits": (lambda path: Image.new("I;16", (8, 8)).save(path, format="PNG"), r"not a usable image \(mode I;16"),
}


@pytest.mark.parametrize(("part", "what"), [("train", "a truncated file"), *(("val", what) for what in UNUSABLE)])
def test_an_unusable_image_is_found_by_the_check(root: Path, part: str, what: str) -> None:
    spoil, message = UNUSABLE[what]
    spoil(root / part / "bee" / "1.png")
    splits = image_folder(root, side=8)
    with pytest.raises(EnvironmentFault, match=rf"{part}/bee/1\.png:? {message}") as caught:
        check(splits)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_found_by_the_check(root: Path) -> None:
    (root / "val" / "bee" / "1.png").chmod(0)
    with pytest.raises(EnvironmentFault, match=r"val/bee/1\.png cannot be read: Permission denied"):
        check(image_folder(root, side=8))


def test_a_file_and_a_folder_that_cannot_be_read_are_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    splits = image_folder(root, side=8)
    with monkeypatch.context() as patched, pytest.raises(EnvironmentFault, match=r"0\.png cannot be read: Permission"):
        patched.setattr(folders.Path, "open", refuse)
        check(splits)
    monkeypatch.setattr(folders.Path, "iterdir", refuse)
    with pytest.raises(EnvironmentFault, match=r"train cannot be read: Permission denied"):
        image_folder(root, side=8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "RGBA", "LA"])
def test_opaque_images_of_8_bits_are_read(tmp_path: Path, mode: str) -> None:
    path, gray = tmp_path / "x.tiff", Image.new("L", (4, 4), 255)
    gray.convert("RGBA" if mode == "LA" else "RGB").convert(mode).save(path)
    assert square(path, 4).unique().tolist() == [255]


def test_a_preview_beside_the_image_of_a_camera_is_left_out(tmp_path: Path) -> None:
    noise(seed=3).save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[noise(seed=4)])
    noise(seed=3).save(tmp_path / "y.jpg")
    assert torch.equal(square(tmp_path / "x.jpg", 12), square(tmp_path / "y.jpg", 12))


def test_the_orientation_of_a_camera_is_applied(tmp_path: Path) -> None:
    image = noise()
    image.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "rotated.png", exif=exif)
    assert torch.equal(square(tmp_path / "rotated.png", 12), square(tmp_path / "upright.png", 12))


def test_suffixes_in_capitals_and_of_other_formats_and_links_are_read(root: Path) -> None:
    folder = root / "train" / "ant"
    noise(seed=50).save(folder / "a.JPG", format="PNG")
    (root / "aside.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "0.png").unlink()
    (folder / "0.png").symlink_to(root / "aside.png")
    splits = image_folder(root, side=8)
    check(splits)
    assert len(splits.train) + len(splits.validation) == 21


@pytest.mark.parametrize("name", ["train/ant/x.png", "train/cow", "val/bee/lost.png"])
def test_a_link_that_leads_nowhere_is_refused(root: Path, name: str) -> None:
    (root / name).symlink_to(root / "nowhere")
    with pytest.raises(EnvironmentFault, match=rf"{name}: neither a file nor a folder, or a link that leads nowhere"):
        image_folder(root, side=8)


def test_a_pipe_is_refused_and_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "train" / "ant" / "x.png")
    with pytest.raises(EnvironmentFault, match=r"x\.png: neither a file nor a folder"):
        image_folder(root, side=8)


def test_folders_inside_a_class_are_refused(root: Path) -> None:
    (root / "val" / "bee" / "images").mkdir()
    with pytest.raises(EnvironmentFault, match=r"val/bee/images: a folder in the folder of a class"):
        image_folder(root, side=8)


def test_what_is_not_read_is_counted(root: Path) -> None:
    for name in ("train/ant/a.tif", "train/bee/b.TIF", "val/bee/boxes.txt", "train/README"):
        (root / name).write_text("")
    with pytest.warns(UserWarning, match=r"4 entries are not read \(2 \.tif, 1 README, 1 \.txt\); expected images"):
        image_folder(root, side=8)


def test_class_names_that_some_file_systems_hold_for_the_same_are_refused(root: Path) -> None:
    for part in ("train", "val"):
        (root / part / "Ant").mkdir()
        noise().save(root / part / "Ant" / "0.png")
    with pytest.raises(EnvironmentFault, match=r"the folders 'Ant' and 'ant' differ only in case"):
        image_folder(root, side=8)


def test_other_forms_of_a_letter_in_the_parts_are_shown(root: Path) -> None:
    for part, name in (("train", "caf\u00e9"), ("val", "cafe\u0301")):
        (root / part / name).mkdir()
        noise().save(root / part / name / "0.png")
    with pytest.raises(EnvironmentFault, match=r"found 3 \(they differ in 'cafe\\u0301', 'caf\\xe9'\)"):
        image_folder(root, side=8)


def test_too_few_images_for_a_validation_part_are_refused(root: Path) -> None:
    for path in [*(root / "train").rglob("*.png")]:
        if path.stem not in ("0", "1") and path.parent.name == "ant" or path.stem not in ("0", "1", "2"):
            path.unlink()
    with pytest.raises(EnvironmentFault, match=r"train: expected 6 or more images, because 10% .*; found 5"):
        image_folder(root, side=8)
    noise(seed=77).save(root / "train" / "ant" / "new.png")
    assert len(image_folder(root, side=8).validation) == 1


def test_images_of_both_parts_are_warned_of_and_refused_if_there_are_no_others(root: Path) -> None:
    splits = image_folder(root, side=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(splits)
    (root / "val" / "ant" / "1.png").write_bytes((root / "train" / "bee" / "3.png").read_bytes())
    with pytest.warns(UserWarning, match=r"1 of 4 test images are training images too, as .*val/ant/1\.png"):
        check(splits)
    for number, path in enumerate(sorted((root / "val").rglob("*.png"))):
        path.write_bytes((root / "train" / "bee" / f"{number}.png").read_bytes())
    with pytest.raises(EnvironmentFault, match=r"4 of 4 test images are training images too.*no image is left"):
        check(splits)


def test_the_check_reports_progress_and_its_hash_is_of_contents_and_labels(root: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    first = check_images(image_folder(root, side=8), lambda done, total: steps.append((done, total)))
    assert steps[-1] == (24, 24) and len(steps) == 3
    (root / "train" / "ant" / "0.png").rename(root / "train" / "ant" / "00.png")
    assert check(image_folder(root, side=8)) == first
    noise(seed=99).save(root / "train" / "ant" / "00.png")
    changed = check(image_folder(root, side=8))
    assert changed != first
    for part in ("train", "val"):
        (root / part / "bee").rename(root / part / "aaa")
    assert check(image_folder(root, side=8)) not in (first, changed)
