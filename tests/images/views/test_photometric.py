"""Photometric changes, by the compiled kernel and by tensors, against plain float64 formulas, pixel by pixel."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from swav_platform.config import Photometric
from swav_platform.images.views import colour_kernel, photometric
from swav_platform.images.views.params import COLUMN, GEOMETRY, NEUTRAL, ORDERS, PARAMS, SLOTS, photometric_params
from swav_platform.images.views.randomness import uniforms

torch.set_num_threads(1)
CARRIERS = [pytest.param(True, id="kernel"), pytest.param(False, id="tensors")]


def by_tensors(views: np.ndarray, params: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """`apply` as an accelerator does it."""
    return photometric.by_tensors(torch.as_tensor(views), params, dtype)


@pytest.fixture(params=CARRIERS, autouse=True)
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(photometric, "apply", by_tensors)


GREY = np.array([0.2989, 0.587, 0.114])


def neutral(views: int, count: int, **changes: float | np.ndarray) -> np.ndarray:
    params = np.zeros((views, count, len(PARAMS)), np.float32)
    params[..., len(GEOMETRY) :] = NEUTRAL
    for name, value in changes.items():
        params[..., COLUMN[name]] = value
    return params


def drawn(views: int, count: int, recipe: Photometric) -> np.ndarray:
    params = neutral(views, count)
    params[..., len(GEOMETRY) :] = photometric_params(uniforms(3, np.arange(count), views, SLOTS), recipe).swapaxes(0, 1)
    return params


def noise(views: int, count: int, size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (views, count, size, size, 3), dtype=np.uint8)


def plain(pixels: np.ndarray, params: np.ndarray) -> np.ndarray:
    """One image uint8 [H, W, 3] -> float64 [H, W, 3] in [0, 1]: what the changes are by definition."""
    p = {name: float(params[column]) for name, column in COLUMN.items()}
    x = pixels / 255.0
    for change in ORDERS[int(p["order"])] if p["jitter"] else ():
        if change == 0:
            x = np.clip(p["brightness"] * x, 0, 1)
        elif change == 1:
            x = np.clip(p["contrast"] * x + (1 - p["contrast"]) * (x @ GREY).mean(), 0, 1)
        elif change == 2:
            x = np.clip(p["saturation"] * x + (1 - p["saturation"]) * (x @ GREY)[..., None], 0, 1)
        else:
            x = np.array([[turned(*pixel, p["hue"]) for pixel in line] for line in x])
    if p["grey"]:
        x = np.repeat((x @ GREY)[..., None], 3, axis=2)
    if p["blur_sigma"]:
        x = blurred(blurred(x, p["blur_sigma"]).swapaxes(0, 1), p["blur_sigma"]).swapaxes(0, 1)
    if p["solarise"]:
        x = np.where(x >= 0.5, 1 - x, x)
    return x


def turned(red: float, green: float, blue: float, turn: float) -> tuple[float, float, float]:
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    return colorsys.hsv_to_rgb((hue + turn) % 1.0, saturation, value)


def blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    """Along the first axis, edges continued, with every weight that is not nothing."""
    reach = int(np.ceil(10 * sigma))
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    padded = np.concatenate([np.repeat(x[:1], reach, 0), x, np.repeat(x[-1:], reach, 0)])
    return sum(w * padded[d : d + len(x)] for d, w in enumerate(weights / weights.sum()))


def in_0_1(normalised: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    """Undoes the published normalisation: [V * R, 3, H, W] -> [V, R, H, W, 3]."""
    pixels = normalised.permute(0, 2, 3, 1).double().numpy() * [0.228, 0.224, 0.225] + [0.485, 0.456, 0.406]
    return pixels.reshape(shape)


def check(views: np.ndarray, params: np.ndarray, tolerance: float = 2e-6) -> None:
    got = in_0_1(photometric.apply(views, params), views.shape)
    for v in range(views.shape[0]):
        for r in range(views.shape[1]):
            np.testing.assert_allclose(
                got[v, r], plain(views[v, r], params[v, r]), atol=tolerance, err_msg=f"view {v}, image {r}"
            )


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.8])
def test_one_blend(name: str, factor: float) -> None:
    check(noise(1, 3, 8), neutral(1, 3, jitter=1, **{name: factor}))


@pytest.mark.parametrize("turn", [-0.5, -0.2, 0.0, 0.07, 0.5])
def test_hue_is_colorsys(turn: float) -> None:
    views = noise(1, 2, 8)
    views[0, 1] = np.repeat(np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8, 1), 3, axis=2)  # greys have no hue
    views[0, 0, 0] = [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [255, 255, 0],
        [0, 0, 0],
        [255, 255, 255],
        [9, 9, 200],
        [200, 9, 200],
    ]
    check(views, neutral(1, 2, jitter=1, hue=turn))


@pytest.mark.parametrize("order", range(24))
def test_every_order_of_jitter(order: int) -> None:
    check(noise(1, 2, 6), neutral(1, 2, jitter=1, order=order, brightness=1.5, contrast=0.4, saturation=1.7, hue=0.1))


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0, 5.0])
def test_blur_is_a_gaussian(sigma: float) -> None:
    check(noise(1, 2, 16), neutral(1, 2, blur_sigma=sigma))


def test_grey_and_solarise() -> None:
    check(noise(2, 3, 8), neutral(2, 3, grey=np.array([[0, 1, 1], [1, 0, 0]]), solarise=np.array([[1, 0, 1], [0, 0, 1]])))


@pytest.mark.parametrize("size", [8, 16])
def test_everything_together(size: int) -> None:
    recipe = Photometric(solarise=0.3, grey=0.3)
    check(noise(2, 12, size), drawn(2, 12, recipe), tolerance=1e-5)


def test_an_image_does_not_depend_on_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    views, params = noise(2, 8, 16), drawn(2, 8, Photometric(solarise=0.3))
    together = photometric.apply(views, params).reshape(2, 8, 3, 16, 16)
    monkeypatch.setattr(photometric, "_BLOCK", 3 * 16 * 16 * 3)
    np.testing.assert_array_equal(photometric.apply(views, params).reshape(2, 8, 3, 16, 16), together)
    for r in range(8):
        alone = photometric.apply(views[:, r : r + 1], params[:, r : r + 1])
        np.testing.assert_array_equal(alone, together[:, r])


def test_shapes_memory_and_normalisation() -> None:
    views = noise(2, 3, 8)
    for got in (photometric.apply(views, neutral(2, 3)), photometric.normalise(views)):
        assert got.shape == (6, 3, 8, 8)
        assert got.dtype == torch.float32
        assert got.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(in_0_1(got, views.shape), views / 255, atol=1e-6)
    assert photometric.STD == (0.228, 0.224, 0.225)


def test_rounded_to_bytes_it_is_the_same_within_half_a_level() -> None:
    views, params = noise(2, 8, 16), drawn(2, 8, Photometric(solarise=0.3))
    exact = in_0_1(photometric.apply(views, params), views.shape)
    rounded = colour_kernel.to_uint8(views, params, np.empty_like(views))
    assert np.abs(rounded / 255 - exact).max() < 0.5 / 255 + 1e-5
    colour_kernel.to_uint8(views, params, out=views)
    np.testing.assert_array_equal(views, rounded)


def test_another_dtype_is_the_same_rounded() -> None:
    views, params = noise(2, 4, 16), drawn(2, 4, Photometric())
    half = photometric.apply(views, params, torch.bfloat16)
    assert half.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(half.float(), photometric.apply(views, params).bfloat16().float())


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 33), (70, 2)])
def test_views_of_any_shape(shape: tuple[int, int]) -> None:
    views = np.random.default_rng(2).integers(0, 256, (1, 6, *shape, 3), dtype=np.uint8)
    check(views, drawn(1, 6, Photometric(solarise=0.5)), tolerance=1e-5)


def test_under_autocast_the_pixels_stay_exact() -> None:
    views, params = noise(1, 2, 16), neutral(1, 2, blur_sigma=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = photometric.apply(views, params)
    np.testing.assert_array_equal(inside, photometric.apply(views, params))
