"""The built-in demo's images: which place of a photograph they come from, and that a seed makes them again."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from swav_platform.errors import UserError
from swav_platform.images import patches as module
from swav_platform.images.patches import LEFT, SIDE, Patch, patches, photographs

LEFT_COLOUR, RIGHT_COLOUR = (200, 40, 90), (10, 120, 250)


def two_halves(width: int = 200, height: int = 120) -> np.ndarray:
    """A photograph that is of one colour up to the border between the parts, and of another one behind it."""
    photo = np.empty((height, width, 3), np.uint8)
    photo[:, : round(width * LEFT)], photo[:, round(width * LEFT) :] = LEFT_COLOUR, RIGHT_COLOUR
    return photo


@pytest.mark.parametrize(("left", "colour"), [(True, LEFT_COLOUR), (False, RIGHT_COLOUR)])
@pytest.mark.parametrize("width", [151, 200, 640])
def test_each_part_keeps_to_its_side_of_the_border(left: bool, colour: tuple[int, int, int], width: int) -> None:
    photo = two_halves(width)
    for seed in range(100):
        patch = module._cut(photo, left, np.random.default_rng(seed))
        assert patch.shape == (SIDE, SIDE, 3)
        assert np.array_equal(np.unique(patch.reshape(-1, 3), axis=0), [colour])


def test_a_seed_makes_the_same_patches_again() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    photos = {"a": noise, "b": noise[::-1]}

    def made(seed: int, left: bool = True) -> list[Patch]:
        return list(patches(photos, 3, left=left, seed=seed))

    assert made(1) == made(1)
    contents = {patch.content for patch in (*made(1), *made(2), *made(1, left=False))}
    assert len(contents) == 18, "no two patches are the same"


def test_keys_name_the_photograph() -> None:
    photos = {"a": two_halves(), "b": two_halves()}
    assert [patch.key for patch in patches(photos, 2, left=True, seed=0)] == ["a/00000", "b/00000", "a/00001", "b/00001"]


def test_colours_differ_between_patches_of_one_place() -> None:
    patch = np.full((SIDE, SIDE, 3), LEFT_COLOUR, np.uint8)
    seen = {module._coloured(patch, np.random.default_rng(seed))[0, 0].tobytes() for seed in range(20)}
    assert len(seen) == 20


def test_enough_photographs_are_installed() -> None:
    photos = photographs()
    assert len(photos) == 18
    assert all(photo.dtype == np.uint8 and photo.shape[2] == 3 and min(photo.shape[:2]) >= 2 * SIDE for photo in photos.values())
    assert len(list(islice(patches(photos, 1, left=False, seed=31), 18))) == 18


def test_too_few_photographs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PHOTOGRAPHS", (("no_such_package", "data", ("a.png",)),))
    with pytest.raises(UserError, match="found only 0"):
        photographs()
