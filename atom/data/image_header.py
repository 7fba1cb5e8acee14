"""What the header of an image file says, before any pixel is decoded: its size and its depth."""

import re
from typing import Any, cast

from PIL import Image

from atom.errors import DataError

REFUSED_MODES = ("I", "F")
_BITS_PER_SAMPLE = 258
"""TIFF 6.0, section 8."""


def check_header(picture: Image.Image, where: str) -> None:
    """Refuse what would exhaust memory or lose bits, before any pixel is decoded.

    Raises:
        DataError: the image is larger than Pillow's limit, or has more than 8 bits a channel.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise too_large(where, f"has {picture.width} x {picture.height} pixels,")
    if picture.mode.split(";")[0] in REFUSED_MODES or _is_deep(picture):
        raise DataError(
            f"{where}: the image has mode {picture.mode}, more than 8 bits a channel; "
            "convert it to 8-bit grey or RGB first, so that the scaling is your choice."
        )


def too_large(where: str, size: str) -> DataError:
    """The error for an image beyond Pillow's limit, of which `size` says what is known."""
    return DataError(
        f"{where}: the image {size} more than Pillow's limit of {Image.MAX_IMAGE_PIXELS} pixels against "
        "decompression bombs; shrink or remove it."
    )


def _is_deep(picture: Image.Image) -> bool:
    """Whether the file has more than 8 bits a channel; Pillow shows such colour images as 8-bit ones."""
    for tile in getattr(picture, "tile", ()):
        args = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        # How PNG, TIFF and SGI name the layout of the file's bytes, such as RGB;16B.
        if any(isinstance(value, str) and re.search(r";1[0-6][BLNS]", value) for value in args):
            return True
        if tile[0] == "SGI16":  # uncompressed, where the layout does not say it
            return True
        # PPM: the file's own white.
        if tile[0].startswith("ppm") and isinstance(args[-1], int) and args[-1] > 255:
            return True
    if picture.format == "TIFF" and max(cast(Any, picture).tag_v2.get(_BITS_PER_SAMPLE, (8,))) > 8:
        return True  # channels in planes of their own, where the layout does not say it
    depth_of = {"JPEG2000": _jpeg2000_bits, "AVIF": _avif_bits}.get(picture.format or "")
    return depth_of is not None and depth_of(_head(picture)) > 8


def _head(picture: Image.Image) -> bytes:
    """The first bytes of the file, behind a colour profile if it has one."""
    file = getattr(picture, "fp", None)
    if file is None:
        return b""
    place = file.tell()
    file.seek(0)
    head = file.read(1 << 16)
    file.seek(place)
    return head


def _jpeg2000_bits(head: bytes) -> int:
    """Bits of the first channel: the SIZ segment's eighth field, after 36 bytes of sizes (ISO 15444-1, A.5.1)."""
    start = head.find(b"\xff\x4f\xff\x51")
    depth = head[start + 42 : start + 43] if start >= 0 else b""
    return (depth[0] & 0x7F) + 1 if depth else 8


def _avif_bits(head: bytes) -> int:
    """10 (or 12) if the second bit of the third byte of av1C says so (AV1 in ISO media files, 2.3.3), else 8."""
    start = head.find(b"av1C")
    flags = head[start + 6 : start + 7] if start >= 0 else b""
    return 10 if flags and flags[0] & 0x40 else 8
