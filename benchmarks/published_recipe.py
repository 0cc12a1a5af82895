"""The views of the published recipe (Caron et al. 2020), image by image with Pillow.

Reimplements torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale, ToTensor and Normalize for
Pillow images, and the published Gaussian blur, so that torchvision is not required. Random numbers come from torch and NumPy, as
in the originals. Imports nothing of the platform, because it runs in a separate environment.

    python published_recipe.py PATH

Reads `whole`, `geometry` or `decode` from standard input and answers each line with the CPU seconds of that pass over all images.
"""

from __future__ import annotations

import io
import math
import sys
import tarfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter

RATIO = (3 / 4, 4 / 3)
GROUPS = ((224, 2, (0.14, 1.0)), (96, 6, (0.05, 0.14)))  # size, views, share of the image's area
MEAN, STD = (0.485, 0.456, 0.406), (0.228, 0.224, 0.225)


class Chances(NamedTuple):
    """Probabilities and strengths of the photometric changes."""

    jitter: float = 0.8
    strengths: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)  # brightness, contrast, saturation, hue; 0: none
    grey: float = 0.2
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)


PUBLISHED = Chances()


def read_images(path: Path) -> list[bytes]:
    """The .jpg members of the tars in a folder, or its .jpg files if it has no tars."""
    found = []
    for tar in sorted(path.glob("*.tar")):
        with tarfile.open(tar) as file:
            found += [file.extractfile(m).read() for m in file if m.name.endswith(".jpg")]  # type: ignore[union-attr]
    return found or [file.read_bytes() for file in sorted(path.glob("*.jpg"))]


def load(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def uniform(low: float, high: float) -> float:
    return float(torch.empty(1).uniform_(low, high))


def random_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float] = RATIO
) -> tuple[int, int, int, int]:
    """As RandomResizedCrop.get_params: top, left, height, width."""
    area = height * width
    log_ratio = torch.log(torch.tensor(ratio))
    for _ in range(10):
        target = area * uniform(*scale)
        aspect = float(torch.exp(torch.empty(1).uniform_(float(log_ratio[0]), float(log_ratio[1]))))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, size=(1,)))
            return top, int(torch.randint(0, width - w + 1, size=(1,))), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


def crop(
    image: Image.Image, size: int, scale: tuple[float, float], ratio: tuple[float, float] = RATIO, flip: float = 0.5
) -> Image.Image:
    top, left, height, width = random_box(*image.size, scale, ratio)
    view = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(1) < flip else view


def turn_hue(view: Image.Image, turn: float) -> Image.Image:
    hue, saturation, value = view.convert("HSV").split()
    turned = np.array(hue, dtype=np.uint8)
    turned += np.array(turn * 255).astype(np.int32).astype(np.uint8)  # wraps around at 256
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def random_jitter(chances: Chances = PUBLISHED) -> list[tuple[int, float]]:
    """As ColorJitter.get_params: changes 0-3 (brightness, contrast, saturation, hue) and their factors, in random order."""
    order = torch.randperm(4).tolist()
    *blends, hue = chances.strengths
    ranges = [(max(0.0, 1 - strength), 1 + strength) for strength in blends] + [(-hue, hue)]
    factors = [uniform(*limits) if strength else None for limits, strength in zip(ranges, chances.strengths, strict=True)]
    return [(change, factor) for change in order if (factor := factors[change]) is not None]


def jitter(view: Image.Image, chances: Chances = PUBLISHED) -> Image.Image:
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for change, factor in random_jitter(chances):
        view = turn_hue(view, factor) if change == 3 else enhancers[change](view).enhance(factor)
    return view


def grey(view: Image.Image) -> Image.Image:
    plane = np.array(view.convert("L"), dtype=np.uint8)
    return Image.fromarray(np.dstack([plane, plane, plane]))


def blur(view: Image.Image, sigma: tuple[float, float] = PUBLISHED.sigma) -> Image.Image:
    return view.filter(ImageFilter.GaussianBlur(radius=np.random.uniform(*sigma)))


def colours(view: Image.Image, chances: Chances = PUBLISHED) -> Image.Image:
    if torch.rand(1) < chances.jitter:
        view = jitter(view, chances)
    if torch.rand(1) < chances.grey:
        view = grey(view)
    return blur(view, chances.sigma) if np.random.rand() < chances.blur else view


def to_tensor(view: Image.Image) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(view, dtype=np.uint8, copy=True)).permute(2, 0, 1).contiguous()
    mean, std = (torch.as_tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return pixels.to(torch.float32).div(255).clone().sub_(mean).div_(std)


def cropped(data: bytes) -> list[Image.Image]:
    image = load(data)
    return [crop(image, size, scale) for size, count, scale in GROUPS for _ in range(count)]


def views(data: bytes) -> list[torch.Tensor]:
    """All views of an image: 2 of [3, 224, 224], 6 of [3, 96, 96]."""
    image = load(data)
    return [to_tensor(colours(crop(image, size, scale))) for size, count, scale in GROUPS for _ in range(count)]


PASSES = {"whole": views, "geometry": cropped, "decode": load}


def serve(path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    images = read_images(path)
    for data in images[:8]:
        views(data)
    import PIL

    print(PIL.__version__, len(images), flush=True)
    for line in sys.stdin:
        make = PASSES[line.strip()]
        start = time.process_time()
        for data in images:
            make(data)
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
