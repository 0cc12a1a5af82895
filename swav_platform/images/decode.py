"""Decoding, as other packages use it. The parts are in `decoding/`."""

from swav_platform.images.decoding.decode import (
    Decoded,
    NoDecoderError,
    Refused,
    codec_fingerprint,
    decode,
    decode_reduced,
    thumbnail,
)

__all__ = ["Decoded", "NoDecoderError", "Refused", "codec_fingerprint", "decode", "decode_reduced", "thumbnail"]
