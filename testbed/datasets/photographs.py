"""Photographs as model input, from the data folder of the package scikit-image.

They are few, so random crops, scales and flips make many different inputs of them. One photograph is held out for
verification and timing, so that codebooks are never evaluated on what they were trained on.
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

from testbed.errors import DATA_FIX, EnvironmentFault
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

# Mean and standard deviation of ImageNet's channels, with which the pretrained models were trained.
CHANNEL_MEAN = (0.485, 0.456, 0.406)
CHANNEL_STD = (0.229, 0.224, 0.225)


def photographs(tokens: int, patch: int, count: int, seed: int) -> Tensor:
    """Random crops of the training photographs, [count, 3, height, width], normalized by ImageNet's channels.

    Height and width are ``patch_grid(tokens)`` times ``patch`` pixels. Crop i is of photograph i modulo their number
    and depends on ``seed`` and i only. Raises EnvironmentFault if scikit-image is missing.
    """
    rows, columns = patch_grid(tokens)
    crops = []
    for index in range(count):
        draw = random.Random(f"{seed}/{index}")
        image = _open(TRAINING[index % len(TRAINING)])
        if draw.random() < 0.5:
            image = ImageOps.mirror(image)
        scale = draw.uniform(SMALLEST_CROP, 1) ** 0.5
        crops.append(_crop(image, columns * patch, rows * patch, scale, draw.random(), draw.random()))
    return torch.stack(crops)


def photograph(tokens: int, patch: int) -> Tensor:
    """The largest center crop of the held-out photograph, [1, 3, height, width], normalized as ``photographs``."""
    rows, columns = patch_grid(tokens)
    return _crop(_open(EVALUATION), columns * patch, rows * patch, scale=1, left=0.5, top=0.5)[None]


def _crop(image: Image.Image, width: int, height: int, scale: float, left: float, top: float) -> Tensor:
    """A crop, resized to [3, height, width]. scale: its width over that of the largest crop of this shape.

    left, top: 0 to 1, its position in the remaining space.
    """
    fit = scale * min(image.width / width, image.height / height)
    x = left * (image.width - fit * width)
    y = top * (image.height - fit * height)
    box = (x, y, x + fit * width, y + fit * height)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    pixels_CHW = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    return (pixels_CHW - torch.tensor(CHANNEL_MEAN)[:, None, None]) / torch.tensor(CHANNEL_STD)[:, None, None]


@cache
def _open(name: str) -> Image.Image:
    # The package is never imported: that would need SciPy and more, and only its data files are used.
    spec = importlib.util.find_spec("skimage")
    path = Path(spec.origin).parent / "data" / name if spec and spec.origin else None
    if path is None or not path.is_file():
        raise EnvironmentFault(f"photograph {name} needs the package scikit-image 0.26.0: {DATA_FIX}")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders raise classes without a common base
        reason = " ".join(str(error).split())
        raise EnvironmentFault(f"{path} is not the file of scikit-image 0.26.0 ({reason}): {DATA_FIX}") from error
