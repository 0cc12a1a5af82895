"""Images of more than 8 bits: what becomes black and white, and colour maps of TIFF."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from swav_platform.config import ImagePolicy, load
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.decode import decode
from swav_platform.images.decoding.refused import Refused
from tests.makers import encoded

FULL, STRETCH = ImagePolicy(), ImagePolicy(levels="stretch")
RAMP = (np.add.outer(np.arange(32), np.arange(32)) * 4095 / 62).round()
"""12 bits."""


def files(values: np.ndarray) -> dict[str, bytes]:
    kinds = {
        "png 16": (np.uint16, "PNG"),
        "tiff 16": (np.uint16, "TIFF"),
        "tiff 32": (np.int32, "TIFF"),
        "float": (np.float32, "TIFF"),
    }
    found = {name: encoded(Image.fromarray(values.astype(dtype)), kind) for name, (dtype, kind) in kinds.items()}
    colours = np.stack([values, values[::-1], values[:, ::-1]], 2).astype(np.uint16)
    return found | {"png 16 colours": png16(colours), "tiff 16 colours": tiff16(colours)}


def png16(values: np.ndarray) -> bytes:
    """uint16 [H, W, C]; C = 2 (grey and alpha), 3 or 4. Pillow can't write these."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def tiff16(values: np.ndarray, order: str = "<", photometric: int = 2) -> bytes:
    """uint16 [H, W, C], uncompressed."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    bits = 8 + len(data)
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, bits if channels > 2 else 16), (259, 3, 1, 1)]
    entries += [(262, 3, 1, photometric), (273, 4, 1, 8), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data))]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        directory += struct.pack(f"{order}HHI", tag, kind, count)
        directory += struct.pack(f"{order}HH" if short else f"{order}I", *((value, 0) if short else (value,)))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, bits + 2 * channels)
    return head + data + struct.pack(f"{order}{channels}H", *[16] * channels) + directory + bytes(4)


@pytest.mark.parametrize("kind", files(RAMP))
def test_twelve_bits_in_sixteen(kind: str) -> None:
    data = files(RAMP)[kind]
    assert decode(data, FULL).max() <= 16, "as ever"
    for levels in ("stretch", (0, 4095)):
        got = decode(data, ImagePolicy(levels=levels))
        assert np.abs(got[..., 0] - RAMP / 4095 * 255).max() <= 0.51
        if "colours" in kind:
            assert np.abs(got[..., 1] - RAMP[::-1] / 4095 * 255).max() <= 0.51
            assert np.abs(got[..., 2] - RAMP[:, ::-1] / 4095 * 255).max() <= 0.51
    clipped = decode(data, ImagePolicy(levels=(1000, 2000)))[..., 0]
    assert (clipped[RAMP <= 1000] == 0).all()
    assert (clipped[RAMP >= 2000] == 255).all()


@pytest.mark.parametrize("kind", files(RAMP))
@pytest.mark.parametrize("value", [0, 700, 65535])
def test_an_image_of_one_value_is_black_when_it_is_stretched(kind: str, value: int) -> None:
    assert (decode(files(np.full((20, 20), value))[kind], STRETCH) == 0).all()


def test_values_that_are_no_numbers_do_not_stretch() -> None:
    values = np.linspace(1000, 2000, 32 * 32, dtype=np.float32).reshape(32, 32)
    values[0, :3] = np.nan, np.inf, -np.inf
    for levels in ("stretch", (1000, 2000)):
        got = decode(encoded(Image.fromarray(values), "TIFF"), ImagePolicy(levels=levels))[..., 0]
        assert got[0, :3].tolist() == [0, 255, 0]
        assert np.abs(got[1:] - (values[1:] - 1000) / 1000 * 255).max() <= 1.5
    empty = np.full((32, 32), np.nan, np.float32)
    assert (decode(encoded(Image.fromarray(empty), "TIFF"), STRETCH) == 0).all()


def test_negative_values_and_those_of_big_endian_files() -> None:
    values = np.linspace(-1024, 3071, 32 * 32).reshape(32, 32).round()
    got = decode(encoded(Image.fromarray(values.astype(np.int32)), "TIFF"), ImagePolicy(levels=(-1024, 3071)))
    assert np.abs(got[..., 0] - (values + 1024) / 4095 * 255).max() <= 0.51
    for order in "<>":
        got = decode(tiff16(RAMP[..., None], order, photometric=1), STRETCH)
        assert np.abs(got[..., 0] - RAMP / 4095 * 255).max() <= 0.51
        if order == "<":  # Pillow can't read the other
            white_first = decode(tiff16(RAMP[..., None], order, photometric=0), STRETCH)
            np.testing.assert_array_equal(white_first, 255 - got)
        colours = np.repeat(RAMP[..., None], 3, 2)
        np.testing.assert_array_equal(decode(tiff16(colours, order), STRETCH), got)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_compressed_sixteen_bits(compression: str) -> None:
    data = encoded(Image.fromarray(RAMP.astype(np.uint16)), "TIFF", compression=compression)
    assert np.abs(decode(data, STRETCH)[..., 0] - RAMP / 4095 * 255).max() <= 0.51


def test_transparency_of_sixteen_bits() -> None:
    grey = np.stack([RAMP, np.where(RAMP < 2000, 0, 65535)], 2).astype(np.uint16)
    colour = np.concatenate([np.repeat(RAMP[..., None], 3, 2), grey[..., 1:]], 2).astype(np.uint16)
    for values in (grey, colour):
        got = decode(png16(values), ImagePolicy(levels=(0, 4095)))
        assert (got[RAMP < 2000] == 255).all()
        seen = RAMP >= 2000
        assert np.abs(got[seen] - RAMP[seen, None] / 4095 * 255).max() <= 0.51


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_images_of_eight_bits_are_not_changed(kind: str) -> None:
    data = encoded(Image.fromarray((RAMP // 256).astype(np.uint8)), kind)
    for levels in ("stretch", (0, 4095)):
        np.testing.assert_array_equal(decode(data, ImagePolicy(levels=levels)), decode(data, FULL))


def tiff32(values: np.ndarray, bits: int = 32, sample_format: int = 1, order: str = "<") -> bytes:
    """Grey values [H, W] of any type, uncompressed."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    entries = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 4, height), (279, 4, len(data)), (339, 3, sample_format)]
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        content = struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, 1) + content
    return (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data)) + data + directory + bytes(4)


@pytest.mark.parametrize("levels", ["full", "stretch", (0, 2**32 - 1)])
def test_values_of_32_bits_without_a_sign(levels: object) -> None:
    ramp = np.linspace(0, 2**32 - 1, 32 * 32).reshape(32, 32)
    pixels = decode(tiff32(ramp.astype(np.uint32)), ImagePolicy(levels=levels))[..., 0]
    np.testing.assert_allclose(pixels, ramp / (2**32 - 1) * 255, atol=0.51)
    signed = decode(tiff32((ramp - 2**31).astype(np.int32), sample_format=2), STRETCH)[..., 0]
    np.testing.assert_allclose(signed, ramp / (2**32 - 1) * 255, atol=0.51)


@pytest.mark.parametrize(
    ("dtype", "sample_format", "order"),
    [(np.float64, 3, "<"), (np.float16, 3, "<"), (np.uint64, 1, ">"), (np.int64, 2, "<"), (np.uint32, 1, ">")],
)
def test_values_that_are_not_read_are_no_damage(dtype: type, sample_format: int, order: str) -> None:
    values = np.ones((32, 32), dtype)
    with pytest.raises(Refused, match="convert it") as refused:
        decode(tiff32(values, values.itemsize * 8, sample_format, order), FULL)
    assert refused.value.outcome is Outcome.UNSUPPORTED_FORMAT


def test_levels_of_a_configuration() -> None:
    assert load(None, ["data.images.levels=[0, 4095]"]).data.images.levels == (0, 4095)
    assert load(None, ["data.images.levels=full"]).digest() == load(None).digest()
    assert load(None, ["data.images.levels=stretch"]).digest() != load(None).digest()
    for wrong in ("[4095, 0]", "[5, 5]", "bright", "[1]"):
        with pytest.raises(Exception, match=r"data\.images"):
            load(None, [f"data.images.levels={wrong}"])


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("scale", [1, 257])
def test_colour_maps_of_eight_bits(compression: str, scale: int) -> None:
    """TIFF wants 16 bits; programs that write 8 mean the same colours."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16).repeat(2, 0).repeat(2, 1), "L").convert("P")
    colours = np.random.default_rng(0).integers(0, 256, (256, 3))
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[320] = tuple(int(value) * scale for value in colours.T.ravel())
    image.putpalette(bytes(768))
    out = BytesIO()
    image.save(out, "TIFF", compression=compression, tiffinfo=tags)
    data = out.getvalue()
    got = decode(_with_map(data, colours * scale), FULL)
    np.testing.assert_array_equal(got[::2, ::2].reshape(256, 3), colours)


def _with_map(data: bytes, colours: np.ndarray) -> bytes:
    """Pillow writes a colour map of its own; this one takes its place."""
    with Image.open(BytesIO(data)) as image:
        place = _offset_of(data, 320)
        assert len(image.tag_v2[320]) == 768
    return data[:place] + colours.T.astype("<u2").tobytes() + data[place + 1536 :]


def _offset_of(data: bytes, wanted: int) -> int:
    start = struct.unpack_from("<I", data, 4)[0]
    for number in range(struct.unpack_from("<H", data, start)[0]):
        tag, _, _, place = struct.unpack_from("<HHII", data, start + 2 + 12 * number)
        if tag == wanted:
            return int(place)
    raise AssertionError
