"""Decoding: what comes out of each kind of image, and which reason of what is none."""

from __future__ import annotations

import struct
import threading
import warnings
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, features

from swav_platform.config import ImagePolicy
from swav_platform.data.index.magic import format_of
from swav_platform.data.ledger.outcomes import Outcome
from swav_platform.images.decoding import confined
from swav_platform.images.decoding.decode import codec_fingerprint, decode, thumbnail
from swav_platform.images.decoding.pillow import truncated_accepted, with_pillow
from swav_platform.images.decoding.refused import Refused
from tests.makers import encoded, png_header

POLICY = ImagePolicy()
pytestmark = pytest.mark.filterwarnings("ignore")  # pytest takes back the filter that the module sets


def photograph(height: int = 40, width: int = 60) -> Image.Image:
    """Smooth and without any symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([y * 255 // height, x * 255 // width, (x * y) % 97], axis=2).astype(np.uint8))


def outcome(data: bytes, policy: ImagePolicy = POLICY) -> Outcome:
    with pytest.raises(Refused) as refused:
        decode(data, policy)
    assert refused.value.detail
    return refused.value.outcome


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "GIF"])
def test_lossless_formats_come_out_as_they_went_in(form: str) -> None:
    image = photograph().quantize(64) if form == "GIF" else photograph()
    got = decode(encoded(image, form), POLICY)
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_what_pillow_makes_of_it(mode: str, options: dict) -> None:
    data = encoded(photograph().convert(mode), "JPEG", **options)
    theirs = np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data, POLICY) - theirs).max() <= 2


def test_adobe_cmyk_is_not_inverted() -> None:
    got = decode(encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"), POLICY)
    assert got[..., 0].min() > 200
    assert got[..., 1:].max() < 60


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("number", [*range(1, 9), 0, 9, 77])
def test_orientation(form: str, number: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = number
    data = encoded(photograph(), form, exif=exif)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))))
    got = decode(data, POLICY)
    assert got.shape == seen.shape
    assert got.flags.c_contiguous
    assert np.abs(got - seen.astype(int)).max() <= (2 if form == "JPEG" else 0)


def test_metadata_that_nobody_can_read_changes_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photograph(), "JPEG", exif=exif)
    broken = data.replace(b"Exif\0\0MM", b"Exif\0\0XX").replace(b"Exif\0\0II", b"Exif\0\0XX")
    assert broken != data
    assert decode(broken, POLICY).shape == (40, 60, 3)


def half_transparent(mode: str) -> Image.Image:
    image = Image.new("RGBA", (32, 32), (200, 0, 0, 255))
    image.paste((0, 0, 200, 0), (16, 0, 32, 32))
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_is_white(mode: str) -> None:
    got = decode(encoded(half_transparent(mode), "PNG"), POLICY)
    assert (got[:, 16:] == 255).all()
    assert got[:, :16, 2].max() < 100


def test_transparent_colours_without_an_alpha_channel() -> None:
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.paste(1, (16, 0, 32, 32))
    got = decode(encoded(palette, "PNG", transparency=1), POLICY)
    assert (got[:, :16] == [10, 20, 30]).all()
    assert (got[:, 16:] == 255).all()
    for image, key in ((Image.new("RGB", (32, 32), (1, 2, 3)), (1, 2, 3)), (Image.new("L", (32, 32), 7), 7)):
        assert (decode(encoded(image, "PNG", transparency=key), POLICY) == 255).all()


def test_deep_images_are_scaled_to_8_bits() -> None:
    levels = np.linspace(0, 65535, 32 * 32).reshape(32, 32)
    grey16 = decode(encoded(Image.fromarray(levels.astype(np.uint16)), "PNG"), POLICY)
    np.testing.assert_array_equal(grey16[..., 0], np.rint(levels.astype(np.uint16) / 257))
    assert (grey16 == grey16[..., :1]).all()
    for values in (levels / 65535, levels / 257, levels - 40000):
        got = decode(encoded(Image.fromarray(values.astype(np.float32)), "TIFF"), POLICY)
        assert np.abs(got[..., 1] - levels / 257).max() <= 0.51
    whole = decode(encoded(Image.fromarray(levels.astype(np.int32)), "TIFF"), POLICY)
    assert np.abs(whole[..., 2] - levels / 257).max() <= 0.51
    far = 16_777_217 + np.arange(32 * 32, dtype=np.int32).reshape(32, 32)  # float32 does not know these apart
    got = decode(encoded(Image.fromarray(far), "TIFF"), POLICY)[..., 0]
    assert (np.diff(got.ravel().astype(int)) >= 0).all()
    assert (got.min(), got.max()) == (0, 255)
    empty = np.full((32, 32), np.nan, np.float32)
    assert (decode(encoded(Image.fromarray(empty), "TIFF"), POLICY) == 0).all()


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "lime")]
    got = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), POLICY)
    assert (got == [255, 0, 0]).all()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", Outcome.NOT_AN_IMAGE),
        (b"<!DOCTYPE html><html>", Outcome.NOT_AN_IMAGE),
        (b"%PDF-1.4", Outcome.NOT_AN_IMAGE),
        (b"<?xml version='1.0'?><Error/>", Outcome.NOT_AN_IMAGE),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Outcome.UNSUPPORTED_FORMAT),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Outcome.UNSUPPORTED_FORMAT),
        (b"\x89PNG\r\n\x1a\n", Outcome.TRUNCATED),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", Outcome.TRUNCATED),
        (b"\xff\xd8\xff\xd9", Outcome.CORRUPT),
    ],
)
def test_what_is_no_image(data: bytes, expected: Outcome) -> None:
    assert outcome(data) == expected


def test_the_policy() -> None:
    photo = photograph()
    assert outcome(encoded(photo, "PNG"), ImagePolicy(formats=("JPEG",))) == Outcome.UNSUPPORTED_FORMAT
    for form in ("PNG", "JPEG"):
        data = encoded(photo, form)
        assert outcome(data, ImagePolicy(max_pixels=2400)) == Outcome.TOO_MANY_PIXELS
        assert decode(data, ImagePolicy(max_pixels=2401)).shape == (40, 60, 3)
        assert outcome(data, ImagePolicy(max_bytes=len(data) - 1)) == Outcome.TOO_MANY_BYTES
        assert outcome(data, ImagePolicy(min_side=41)) == Outcome.TOO_SMALL
        assert outcome(data, ImagePolicy(max_aspect=1.4)) == Outcome.EXTREME_ASPECT
        assert decode(data, ImagePolicy(max_aspect=1.5, min_side=40)).shape == (40, 60, 3)


def test_formats_are_named_in_any_case() -> None:
    assert ImagePolicy(formats=("jpg", "Png", "tif")).formats == ("JPEG", "PNG", "TIFF")
    assert ImagePolicy(formats=("webp", "JPEG")).formats == ImagePolicy(formats=("jpeg", "WebP")).formats
    assert decode(encoded(photograph(), "PNG"), ImagePolicy(formats=("png",))).shape == (40, 60, 3)
    with pytest.raises(ValueError, match="unknown format PSD"):
        ImagePolicy(formats=("jpeg", "psd"))


@pytest.mark.parametrize(
    "data",
    [
        png_header(30000, 30000),
        png_header(8000, 8000),
        b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;",
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\0\xff\xff\0",
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\x27\x23\0\x27\x23\0",
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
    ],
)
def test_bombs_are_refused_by_their_header(data: bytes) -> None:
    assert outcome(data) == Outcome.TOO_MANY_PIXELS


def test_text_that_inflates() -> None:
    def with_text(size: int) -> bytes:
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", "\0" * size, zip=True)
        return encoded(photograph(), "PNG", pnginfo=text)

    assert decode(with_text(8 * 2**20), POLICY).shape == (40, 60, 3)
    assert outcome(with_text(17 * 2**20)) == Outcome.DECODE_MEMORY


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(photograph(400, 600), "JPEG", progressive=True)
    assert decode(data, POLICY).shape == (400, 600, 3)
    scan = b"\xff\xda\0\x08\1\1\0\1?\0\0"
    bomb = data[:-2] + scan * 20_000 + b"\xff\xd9"
    assert outcome(bomb) == Outcome.DECODE_TIMEOUT


def test_no_memory_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> np.ndarray:
        raise MemoryError

    monkeypatch.setattr(confined, "decode", fail)
    assert outcome(encoded(photograph(), "PNG")) == Outcome.DECODE_MEMORY


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_truncated_images(form: str) -> None:
    data = encoded(photograph(200, 300), form)
    cut = data[: len(data) * 2 // 3]
    assert outcome(cut) == Outcome.TRUNCATED
    got = decode(cut, ImagePolicy(truncated="accept"))
    assert np.abs(got[:50] - decode(data, POLICY)[:50].astype(int)).mean() < 3
    assert outcome(cut) == Outcome.TRUNCATED, "accepting once must not change what comes after"


def refusal_of_pillow(data: bytes) -> Outcome:
    with pytest.raises(Refused) as refused:
        with_pillow(data, "PNG", POLICY)
    return refused.value.outcome


def test_truncated_is_accepted_in_one_thread_only() -> None:
    data = encoded(photograph(200, 300), "PNG")[:-4000]
    found: list[Outcome] = []
    with truncated_accepted():
        thread = threading.Thread(target=lambda: found.append(refusal_of_pillow(data)))
        thread.start()
        thread.join()
        assert bool(ImageFile.LOAD_TRUNCATED_IMAGES)
    assert found == [Outcome.TRUNCATED]
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_fax_codes_are_refused(compression: str) -> None:
    """Decoded, a damaged one would show memory that libtiff has not written."""
    data = encoded(photograph().convert("1"), "TIFF", compression=compression)
    with pytest.raises(Refused, match="convert it") as by_header:
        decode(data, POLICY)
    with pytest.raises(Refused) as by_pillow:
        with_pillow(data, "TIFF", POLICY)
    assert by_header.value.outcome == by_pillow.value.outcome == Outcome.UNSUPPORTED_FORMAT
    assert by_header.value.detail == by_pillow.value.detail
    assert thumbnail(data, POLICY) is None


def test_damaged_images_are_corrupt() -> None:
    data = bytearray(encoded(photograph(), "PNG"))
    data[60:80] = b"\xaa" * 20
    assert outcome(bytes(data)) == Outcome.CORRUPT


def test_the_same_failure_has_the_same_words() -> None:
    details = set()
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            decode(b"\x89PNG\r\n\x1a\n" + b"x" * 99, POLICY)
        details.add(refused.value.detail)
        keep = refused  # noqa: F841  another address for the next one
    assert len(details) == 1
    assert "0x" not in details.pop()


def test_thumbnails() -> None:
    for data in (
        encoded(photograph(300, 200), "JPEG"),
        encoded(photograph(300, 200), "JPEG")[:-2000],
        encoded(photograph(), "PNG"),
    ):
        small = thumbnail(data, POLICY)
        assert small is not None
        assert max(Image.open(BytesIO(small)).size) <= 96
    for data in (b"", b"nothing", png_header(30000, 30000), b"\xff\xd8\xff"):
        assert thumbnail(data, POLICY) is None
    closed = ImagePolicy(formats=("JPEG",))
    assert thumbnail(encoded(photograph(), "PNG"), closed) is None
    assert thumbnail(encoded(photograph(), "JPEG"), closed) is not None
    assert thumbnail(encoded(photograph(), "JPEG"), ImagePolicy(max_bytes=99)) is None


def test_no_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # Pillow warns of more, and raises at twice as many
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always")
        Image.open(BytesIO(encoded(photograph(), "PNG")))
        assert len(caught) == 1
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as importing the module does, outside of pytest
        with pytest.raises(Refused):
            with_pillow(encoded(photograph(), "PNG"), "PNG", ImagePolicy(max_pixels=1999))
        assert len(caught) == 1


def test_sniffing_knows_what_pillow_writes() -> None:
    names = {"ICO": "ICO", "PPM": "netpbm", "PCX": "PCX", "SGI": "SGI", "TGA": "TGA"}
    if features.check("webp"):
        names["WEBP"] = "WEBP"
    if features.check("jpg_2000"):
        names["JPEG2000"] = "JPEG 2000"
    for form, name in names.items():
        assert format_of(encoded(photograph(), form)) == name


def test_the_fingerprint_names_the_decoders() -> None:
    assert "pillow-" in codec_fingerprint()
    assert "simplejpeg-" in codec_fingerprint()
    assert codec_fingerprint() == codec_fingerprint()
