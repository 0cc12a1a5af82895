"""Checks that the installed Pillow works on this CPU and reads all formats that the platform needs.

Run it as a separate process, because a build for another CPU dies of SIGILL instead of raising an exception. Exit code 0 if
Pillow works, else 1 with one line that names what is missing.
"""

from __future__ import annotations

import io
import sys

NEEDED = ("jpg", "zlib", "webp", "libtiff")


def main() -> int:
    import PIL
    from PIL import Image, ImageFilter, features

    missing = [name for name in NEEDED if not features.check(name)]
    if missing:
        print(f"Pillow {PIL.__version__} was built without {', '.join(missing)}")
        return 1
    picture = Image.linear_gradient("L").convert("RGB").resize((199, 151), Image.Resampling.BICUBIC, box=(3.5, 2.25, 200, 180))
    for format in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"):
        buffer = io.BytesIO()
        picture.save(buffer, format)
        buffer.seek(0)
        with Image.open(buffer) as again:
            again.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR).load()
    picture.filter(ImageFilter.GaussianBlur(1.5)).convert("L").convert("RGBA").load()
    picture.convert("RGB", (0.9, 0.1, 0, 4, 0, 1, 0, 0, 0.2, 0, 0.8, -3)).convert("HSV").load()
    print(f"Pillow {PIL.__version__} works")
    return 0


if __name__ == "__main__":
    sys.exit(main())
