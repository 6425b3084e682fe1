"""Real photographs as model input, from the data folder that the package scikit-image ships.

They are few, so many different inputs are made of them by random crop, scale and mirror. One picture is set apart for
verification and timing, so that codebooks are never trained on what they are judged by.
"""

from __future__ import annotations

import importlib.util
import random
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from testbed.errors import EnvironmentFault
from testbed.models.vit import patch_grid

EVALUATION = "coffee.png"
TRAINING = (
    "astronaut.png",
    "chelsea.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "camera.png",
    "coins.png",
    "retina.jpg",
    "gravel.png",
    "hubble_deep_field.jpg",
    "brick.png",
    "ihc.png",
    "grass.png",
)
SMALLEST_CROP = 0.3  # of the largest crop's area

# mean and standard deviation of ImageNet's channels, which the pretrained models were trained with
CHANNEL_MEAN = (0.485, 0.456, 0.406)
CHANNEL_STD = (0.229, 0.224, 0.225)


def photographs(tokens: int, patch: int, count: int, seed: int) -> Tensor:
    """Random crops of the training pictures, normalized by ImageNet's channels: [count, 3, height, width].

    Height and width are ``patch_grid(tokens)`` times ``patch`` pixels. The pictures take turns, and the i-th crop
    depends on ``seed`` and i only. Raises EnvironmentFault if scikit-image is missing.
    """
    rows, columns = patch_grid(tokens)
    crops = []
    for index in range(count):
        draw = random.Random(f"{seed}/{index}")
        picture = _open(TRAINING[index % len(TRAINING)])
        if draw.random() < 0.5:
            picture = ImageOps.mirror(picture)
        scale = draw.uniform(SMALLEST_CROP, 1) ** 0.5
        crops.append(_crop(picture, columns * patch, rows * patch, scale, draw.random(), draw.random()))
    return torch.stack(crops)


def photograph(tokens: int, patch: int) -> Tensor:
    """The picture for verification and timing, its largest center crop: [1, 3, height, width], as ``photographs``."""
    rows, columns = patch_grid(tokens)
    return _crop(_open(EVALUATION), columns * patch, rows * patch, scale=1, left=0.5, top=0.5)[None]


def _crop(picture: Image.Image, width: int, height: int, scale: float, left: float, top: float) -> Tensor:
    """The crop of ``scale`` times the largest that has the shape, as [3, height, width].

    ``left`` and ``top`` in 0..1 place it in the room that is left.
    """
    fit = scale * min(picture.width / width, picture.height / height)
    x = left * (picture.width - fit * width)
    y = top * (picture.height - fit * height)
    box = (x, y, x + fit * width, y + fit * height)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC, box=box)
    pixels_CHW = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    return (pixels_CHW - torch.tensor(CHANNEL_MEAN)[:, None, None]) / torch.tensor(CHANNEL_STD)[:, None, None]


@cache
def _open(name: str) -> Image.Image:
    # the package itself is never imported: it would need SciPy and more, and only its data files are used
    spec = importlib.util.find_spec("skimage")
    path = Path(spec.origin).parent / "data" / name if spec and spec.origin else None
    if path is None or not path.is_file():
        fix = "pip install --no-deps --require-hashes -r requirements-data.txt"
        raise EnvironmentFault(f"photograph {name} needs the package scikit-image 0.26.0: {fix}")
    with Image.open(path) as picture:
        return picture.convert("RGB")
