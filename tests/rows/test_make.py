"""Rows: each position is a function of itself and of the image that fills it; nothing takes the row away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pytest
import torch
import xxhash
from PIL import Image

from swav_platform.config import Config, Data, Photometric, Train, ViewGroup
from swav_platform.data.index.lookup import IndexLine
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.data.order.plan import RowSpec
from swav_platform.data.samples import ReadFailure
from swav_platform.images.decoding.decode import Decoded
from swav_platform.images.views import photometric
from swav_platform.images.views.params import COLUMN, GEOMETRY, NEUTRAL, PARAMS
from swav_platform.rows import make as module
from swav_platform.rows.layout import Row, RowLayout
from swav_platform.rows.make import make_row, view_hashes
from tests.makers import encoded

torch.set_num_threads(1)
R = 8
VIEWS = {
    "large": ViewGroup(size=24, count=2, scale=(0.3, 1.0)),
    "small": ViewGroup(size=9, count=3, scale=(0.1, 0.4), photometric=Photometric(solarise=0.2)),
}


def config(photometric: str = "device", seed: int = 31) -> Config:
    return Config(seed=seed, data=Data(row_size=R, photometric=photometric), views=VIEWS, train=Train(batch=R))


class Store:
    """Images by number, and what was asked for."""

    def __init__(self, **broken: bytes | ReadFailure) -> None:
        self.broken = {int(name[1:]): data for name, data in broken.items()}
        self.asked: list[list[int]] = []

    def fetch(self, numbers: Sequence[int]) -> dict[int, tuple[IndexLine, bytes | ReadFailure]]:
        self.asked.append(list(numbers))
        return {number: (self.line(number), self.broken.get(number, jpeg(number))) for number in numbers}

    @staticmethod
    def line(number: int) -> IndexLine:
        shard = f"shard-{number % 3}.tar"
        return IndexLine(number, f"key{number}", f"/data/{shard}", 512, 100, "jpg", None, name=shard)


def jpeg(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels).resize((40 + number % 7, 30 + number % 5), Image.Resampling.BICUBIC))


def spec(samples: Sequence[int], positions: Sequence[int] = range(80, 80 + R), filler: int = 0) -> RowSpec:
    return RowSpec(10, np.array(positions), np.array(samples), np.arange(R) >= R - filler)


def replacement(position: int, attempt: int) -> int:
    return 1000 * attempt + position


def made(store: Store, settings: Config | None = None, **changes: object) -> Row:
    return make_row(spec(range(R), **changes), store.fetch, replacement, settings or config())  # type: ignore[arg-type]


def position_bytes(row: Row, slot: int) -> bytes:
    parts = [part[view, slot].tobytes() for group in (row.views, row.params) for part in group for view in range(len(part))]
    return b"".join(parts)


@pytest.mark.parametrize("colour", ["black", "white", (90, 120, 60)])
def test_blank_images_are_refused_if_wanted(colour: object) -> None:
    blank = encoded(Image.new("RGB", (40, 30), colour))
    settings = config()
    assert made(Store(n3=blank), settings).outcome.tolist() == [0] * R
    images = settings.data.images.model_copy(update={"blank": "reject"})
    reject = settings.model_copy(update={"data": settings.data.model_copy(update={"images": images})})
    row = made(Store(n3=blank), reject)
    assert row.outcome.tolist() == [Outcome.BLANK if slot == 3 else 0 for slot in range(R)]
    assert row.weight.tolist() == [1] * R, "another sample takes the place"
    assert [event.outcome for event in row.events] == [Outcome.BLANK]
    assert "data.images.blank is reject" in row.events[0].detail


def test_a_clean_row() -> None:
    store = Store()
    row = made(store)
    assert [v.shape for v in row.views] == [(2, R, 24, 24, 3), (3, R, 9, 9, 3)]
    assert [p.shape for p in row.params] == [(2, R, len(PARAMS)), (3, R, len(PARAMS))]
    assert row.row == 10
    assert row.position.tolist() == list(range(80, 88))
    assert row.sample.tolist() == list(range(R))
    assert row.outcome.tolist() == [0] * R
    assert row.weight.tolist() == [1] * R
    assert row.key == [f"key{n}" for n in range(R)]
    assert row.shard[:4] == ["shard-0.tar", "shard-1.tar", "shard-2.tar", "shard-0.tar"]
    assert row.stand_in_for == [None] * R
    assert row.events == []
    assert store.asked == [list(range(R))]
    assert row.costs.read_bytes == sum(len(data) for _, data in store.fetch(range(R)).values())
    assert min(row.costs.read_seconds, row.costs.decode_seconds, row.costs.views_seconds) > 0


def test_the_geometry_that_is_written_down_makes_the_views() -> None:
    row = made(Store())
    for views, params in zip(row.views, row.params, strict=True):
        for v in range(len(views)):
            for slot in range(R):
                top, left, height, width, flip, source_height, source_width = params[v, slot, : len(GEOMETRY)].tolist()
                image = Image.open(BytesIO(jpeg(slot)))
                assert image.size == (source_width, source_height)
                box = image.crop((left, top, left + width, top + height))
                view = np.asarray(box.resize(views.shape[2:4], Image.Resampling.BILINEAR))
                assert np.abs(views[v, slot] - (view[:, ::-1] if flip else view).astype(int)).max() <= 3
    flips = np.concatenate([params[..., COLUMN["flip"]].ravel() for params in row.params])
    assert 0 < flips.mean() < 1


def test_views_and_parameters_lie_in_one_buffer() -> None:
    row = made(Store())
    assert row.packed.nbytes == row.layout.nbytes
    assert all(np.shares_memory(part, row.packed) for part in row.views + row.params)
    assert all(offset % 64 == 0 for offset in row.layout.offsets)
    assert RowLayout.of(config()) == row.layout
    parts = b"".join(part.tobytes() for part in row.views + row.params)
    assert sum(row.packed.tolist()) == sum(parts), "what lies between the parts is zero"


def test_a_position_is_the_same_wherever_it_is_made() -> None:
    straight = made(Store())
    order = np.random.default_rng(0).permutation(R)
    mixed = make_row(spec(order, positions=80 + order), Store().fetch, replacement, config())
    for slot, position in enumerate(order):
        assert position_bytes(mixed, slot) == position_bytes(straight, position)
    np.testing.assert_array_equal(view_hashes(mixed), view_hashes(straight)[order])


def test_other_positions_and_seeds_get_other_crops() -> None:
    row = made(Store())
    assert len({position_bytes(row, slot) for slot in range(R)}) == R
    for other in (made(Store(), config(seed=32)), made(Store(), positions=range(180, 180 + R))):
        assert not set(view_hashes(other)) & set(view_hashes(row))


@pytest.mark.parametrize(
    ("broken", "outcome"),
    [
        (b"<html>", Outcome.NOT_AN_IMAGE),
        (jpeg(3)[:-300], Outcome.TRUNCATED),
        (ReadFailure("no such file"), Outcome.READ_ERROR),
        (ReadFailure("too long", Outcome.TOO_MANY_BYTES), Outcome.TOO_MANY_BYTES),
    ],
)
@pytest.mark.parametrize("mode", ["device", "worker"])
def test_a_bad_image_changes_its_own_position_only(mode: str, broken: bytes | ReadFailure, outcome: Outcome) -> None:
    clean, store = made(Store(), config(mode)), Store(n3=broken)
    row = made(store, config(mode))
    assert store.asked == [list(range(R)), [1083]]
    changed = [slot for slot in range(R) if position_bytes(row, slot) != position_bytes(clean, slot)]
    assert changed == [3]
    assert np.flatnonzero(view_hashes(row) != view_hashes(clean)).tolist() == [3]
    assert row.outcome.tolist() == [0, 0, 0, outcome, 0, 0, 0, 0]
    assert (row.sample[3], row.key[3], row.shard[3], row.stand_in_for[3]) == (1083, "key1083", "shard-0.tar", "key3")
    assert row.weight.tolist() == [1] * R
    (event,) = row.events
    assert (event.position, event.attempt, event.sample, event.key, event.shard) == (83, 0, 3, "key3", "shard-0.tar")
    assert event.outcome == outcome
    assert (event.thumbnail is not None) == (outcome == Outcome.TRUNCATED)
    own = make_row(spec([0, 1, 2, 1083, 4, 5, 6, 7]), Store().fetch, replacement, config(mode))
    assert position_bytes(row, 3) == position_bytes(own, 3), "the crops belong to the position, not to the attempt"


@pytest.mark.parametrize("mode", ["device", "worker"])
def test_three_failed_replacements_leave_a_grey_image_without_weight(mode: str) -> None:
    store = Store(n2=b"x", n1082=b"y", n2082=ReadFailure("gone"), n3082=b"", n5=b"x", n1085=b"z")
    row = made(store, config(mode))
    assert store.asked == [list(range(R)), [1082, 1085], [2082, 2085], [3082]]
    assert row.weight.tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    assert all((views[:, 2] == 128).all() for views in row.views)
    for params in row.params:
        assert (params[:, 2, : len(GEOMETRY)] == 0).all()
        assert (params[:, 2, len(GEOMETRY) :] == NEUTRAL).all()
    assert (row.sample[2], row.key[2], row.stand_in_for[2]) == (2, "key2", None)
    assert (row.sample[5], row.key[5], row.stand_in_for[5]) == (2085, "key2085", "key5")
    assert row.outcome[[2, 5]].tolist() == [Outcome.NOT_AN_IMAGE] * 2
    seen = [(event.position, event.attempt, event.sample, event.outcome) for event in row.events]
    bad = Outcome.NOT_AN_IMAGE
    assert seen == [
        (82, 0, 2, bad),
        (82, 1, 1082, bad),
        (82, 2, 2082, Outcome.READ_ERROR),
        (82, 3, 3082, bad),
        (85, 0, 5, bad),
        (85, 1, 1085, bad),
    ]


def test_filler_is_an_outcome_of_sound_samples() -> None:
    row = made(Store(n7=b"x"), filler=3)
    assert row.outcome.tolist() == [0] * 5 + [Outcome.FILLER] * 2 + [Outcome.NOT_AN_IMAGE]


@pytest.mark.parametrize(
    ("error", "outcome"), [(MemoryError(), Outcome.DECODE_MEMORY), (ZeroDivisionError("?"), Outcome.CORRUPT)]
)
def test_no_exception_takes_the_row_away(monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: Outcome) -> None:
    real = module.decode_reduced

    def decode(data: bytes, *rest: object) -> Decoded:
        if data == jpeg(4):
            raise error
        return real(data, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode_reduced", decode)
    row = made(Store())
    assert row.outcome[4] == outcome
    assert row.weight.tolist() == [1] * R


def test_colours_changed_by_the_worker_are_those_of_the_device() -> None:
    device, worker = made(Store(), config("device")), made(Store(), config("worker"))
    std = np.array(photometric.STD).reshape(3, 1, 1)
    for g in range(2):
        np.testing.assert_array_equal(device.params[g], worker.params[g])
        there = photometric.apply(device.views[g], device.params[g]).numpy() * std
        here = photometric.normalise(worker.views[g]).numpy() * std
        assert np.abs(there - here).max() < 1 / 255
        assert (device.views[g] != worker.views[g]).any()


def test_the_hash_is_of_views_and_then_parameters() -> None:
    row = made(Store())
    expected = [xxhash.xxh3_64_intdigest(position_bytes(row, slot)) for slot in range(R)]
    hashes = view_hashes(row)
    assert hashes.dtype == np.uint64
    assert hashes.tolist() == expected
    row.packed[:] = np.arange(row.packed.size, dtype=np.uint64).astype(np.uint8)
    assert view_hashes(row)[0] == 17480992979043561398, "for ever the same for the same bytes"


def test_making_rows_does_not_import_torch_or_ray() -> None:
    code = "import sys, swav_platform.rows.make; print([name for name in ('torch', 'ray', 'mlflow') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
