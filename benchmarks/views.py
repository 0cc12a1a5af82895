"""Measures the CPU time of making views against the published recipe: image bytes to eight views (2 x 224 + 6 x 96) on one core.

    python benchmarks/views.py [--data DIR] [--camera DIR] [--pairs N]
    python benchmarks/views.py --deferred cuda

DIR holds tars of JPEG photographs, or JPEG files; the default is photographs from installed packages. The recipe
(published_recipe.py) runs with stock Pillow in a separate environment, created once in the user's cache, and with the
Pillow that is installed here. Passes over all images alternate between recipe and platform, each in its own process on
the same core. Ratios are medians over pairs of CPU times. Prints one JSON line:

all_on_core          The whole recipe / the platform, both up to normalised floats.
geometry             Decoding and crops of the recipe / of the platform.
geometry_of_decode   Decoding / decoding and crops, both of the platform.
device_mode          The whole recipe / a data worker that leaves photometric changes to the trainer's device.
deferred_ms          Milliseconds per image of those changes on a core (--deferred cuda: on a GPU, in rows of 256).
camera               Geometry on photographs of 8 to 22 megapixels, which the recipe decodes at full size.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import published_recipe
import torch
from cpu_time import cpu_seconds
from PIL import Image

from swav_platform.config import Config, ViewGroup
from swav_platform.images.decoding.decode import decode
from swav_platform.images.views import crops, params, photometric
from swav_platform.images.views.randomness import uniforms
from swav_platform.rows.layout import Costs, RowLayout
from swav_platform.rows.make import cut_views

PILLOW = "13.0.0"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Recipe:
    """The published recipe in a separate process."""

    def __init__(self, python: str, images: Path) -> None:
        script = str(Path(__file__).with_name("published_recipe.py"))
        self._process = subprocess.Popen(
            [python, script, str(images)], env=os.environ | ONE_THREAD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        self.pillow, self.images = self._process.stdout.readline().split()

    def seconds(self, what: str) -> float:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def stock_python() -> str:
    """An interpreter with stock Pillow and this interpreter's torch and NumPy."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swav-platform" / f"pillow-{PILLOW}"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", f"pillow=={PILLOW}"], check=True, stdout=sys.stderr)
        (site,) = folder.glob("lib/python*/site-packages")
        here = Path(torch.__file__).parents[1]
        (site / "zz-parent.pth").write_text(f"{here}\n")  # searched after its own packages
        (folder / "done").touch()
    return str(python)


class Ours:
    """The platform's views of the same images, made in rows of 32 by the code that makes rows."""

    def __init__(self, images: list[bytes]) -> None:
        self.images, self.config = images, Config()
        self.groups: list[ViewGroup] = list(self.config.views.values())
        self.policy = self.config.data.images
        layout = RowLayout(32, tuple((group.size, group.count) for group in self.groups))
        packed = np.zeros(layout.nbytes, np.uint8)
        self.views, self.params = layout.views(packed), layout.params(packed)

    def decode(self) -> None:
        for data in self.images:
            decode(data, self.policy)

    def geometry(self) -> None:
        """The work of a data worker in `device` mode, including drawing parameters."""
        for start in range(0, len(self.images), 32):
            self._row(start)

    def everything(self) -> None:
        for start in range(0, len(self.images), 32):
            self._row(start)
            self._colours(min(32, len(self.images) - start))

    def deferred(self) -> None:
        for start in range(0, len(self.images), 32):
            self._colours(min(32, len(self.images) - start))

    def _row(self, start: int) -> None:
        images = self.images[start : start + 32]
        numbers = draw(self.groups, range(start, start + len(images)), self.params)
        boxes = [crops.proposals(mine, group) for mine, group in zip(numbers, self.groups, strict=True)]
        for slot, data in enumerate(images):
            cut_views(data, [group[slot] for group in boxes], self.policy, self.groups, self.views, self.params, slot, Costs())

    def _colours(self, count: int) -> None:
        for views, columns in zip(self.views, self.params, strict=True):
            if count == views.shape[1]:
                photometric.apply(views, columns)
            else:
                for view, column in zip(views, columns, strict=True):
                    photometric.apply(view[None, :count], column[None, :count])


def draw(groups: list[ViewGroup], positions: range, columns: list[np.ndarray]) -> list[np.ndarray]:
    """Writes the photometric parameters of `positions` to `columns` and returns each group's uniform random numbers."""
    numbers = uniforms(31, np.array(positions), sum(group.count for group in groups), params.SLOTS)
    each = np.split(numbers, np.cumsum([group.count for group in groups])[:-1], axis=1)
    for mine, group, column in zip(each, groups, columns, strict=True):
        drawn = params.photometric_params(mine, group.photometric).swapaxes(0, 1)
        column[:, : len(positions), len(params.GEOMETRY) :] = drawn
    return each


def seconds(work: Callable[[], None]) -> float:
    start = cpu_seconds()
    work()
    return cpu_seconds() - start


def deferred_on(device: torch.device, pairs: int) -> dict[str, object]:
    """Wall time per image of the trainer's device, in rows of 256 from pinned memory. It does not depend on the pixels."""
    config, generator = Config(), np.random.default_rng(0)
    groups = list(config.views.values())
    layout = RowLayout(256, tuple((group.size, group.count) for group in groups))
    packed = torch.from_numpy(generator.integers(0, 256, layout.nbytes, dtype=np.uint8)).pin_memory()
    views, columns = layout.views(packed.numpy()), layout.params(packed.numpy())
    draw(groups, range(256), columns)
    times = []
    for _ in range(pairs + 3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        there = [torch.from_numpy(v).to(device, non_blocking=True) for v in views]
        torch.cuda.synchronize()
        moved = time.perf_counter()
        for v, p in zip(there, columns, strict=True):
            photometric.apply(v, p)
        torch.cuda.synchronize()
        times.append((moved - began, time.perf_counter() - moved))
    ms = [round(statistics.median(t) * 1000 / 256, 4) for t in zip(*times[3:], strict=True)]
    return {"moved_ms": ms[0], "deferred_ms": ms[1], "hardware": torch.cuda.get_device_name(device), "n": pairs}


def photographs() -> Path:
    """JPEG photographs from scikit-image and scikit-learn in two sizes, written to the cache."""
    from swav_platform.images.patches import photographs as found

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swav-platform" / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in found().items():
        image = Image.fromarray(pixels)
        for side in (400, 500):
            copy = io.BytesIO()
            image.resize((side, round(side * image.height / image.width))).save(copy, "JPEG", quality=90)
            (folder / f"{name}-{side}.jpg").write_bytes(copy.getvalue())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--camera", type=Path)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--deferred", type=torch.device)
    options = parser.parse_args()
    if options.deferred:
        print(json.dumps(deferred_on(options.deferred, options.pairs)))
        return
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the recipe's processes inherit it
    data = options.data or photographs()
    ours = Ours(published_recipe.read_images(data))
    ours.everything()
    count = len(ours.images)
    stock, here = Recipe(stock_python(), data), Recipe(sys.executable, data)
    runs: dict[str, list[float]] = {}
    for _ in range(options.pairs):
        line = {
            "whole": stock.seconds("whole"),
            "everything": seconds(ours.everything),
            "geometry": stock.seconds("geometry"),
            "our_geometry": seconds(ours.geometry),
            "our_decode": seconds(ours.decode),
            "decode": stock.seconds("decode"),
            "deferred": seconds(ours.deferred),
            "whole_here": here.seconds("whole"),
        }
        for name, value in line.items():
            runs.setdefault(name, []).append(value)

    def ratio(above: str, below: str) -> float:
        return round(statistics.median(a / b for a, b in zip(runs[above], runs[below], strict=True)), 3)

    def ms(name: str) -> float:
        return round(statistics.median(runs[name]) * 1000 / count, 3)

    answer: dict[str, object] = {
        "all_on_core": ratio("whole", "everything"),
        "geometry": ratio("geometry", "our_geometry"),
        "geometry_of_decode": ratio("our_decode", "our_geometry"),
        "device_mode": ratio("whole", "our_geometry"),
        "deferred_ms": ms("deferred"),
        "ms": {name: ms(name) for name in runs},
        "all_on_core_pillow_here": ratio("whole_here", "everything"),
        "pillow": [stock.pillow, here.pillow],
        "images": count,
        "pairs": options.pairs,
    }
    for recipe in (stock, here):
        recipe.close()
    if options.camera:
        answer |= camera(options.camera, options.pairs)
    print(json.dumps(answer))


def camera(data: Path, pairs: int) -> dict[str, object]:
    ours, recipe = Ours(published_recipe.read_images(data)), Recipe(stock_python(), data)
    whole, same = [], []
    ours.geometry()
    for _ in range(pairs):
        theirs, mine = recipe.seconds("geometry"), seconds(ours.geometry)
        reduction, crops.reduction = crops.reduction, lambda boxes, groups: 1
        full = seconds(ours.geometry)
        crops.reduction = reduction
        whole.append(theirs / mine)
        same.append(full / mine)
    recipe.close()
    return {"camera": round(statistics.median(whole), 3), "camera_own_full_decode": round(statistics.median(same), 3)}


if __name__ == "__main__":
    main()
