"""Addresses of file systems, as in s3://bucket/folder: which texts are some, and what they open."""

import re
from typing import TYPE_CHECKING

from atom.errors import StoreError

if TYPE_CHECKING:
    import pyarrow.fs as pafs

# Windows drive letters are one character, so a scheme has at least two.
_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")


def is_uri(text: str) -> bool:
    """Whether a text is an address rather than a path.

    >>> is_uri("s3://bucket/pets"), is_uri("C:/pets"), is_uri("folder:pets")
    (True, False, False)
    """
    return bool(_URI.match(text))


def open_uri(text: str, *, flag: str) -> "tuple[pafs.FileSystem, str]":
    """The file system that an address names, and the path on it.

    Args:
        text: the address; credentials and endpoints come from where the vendor's tools take them, as from
            AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL.
        flag: that named it, for messages.

    Raises:
        StoreError: the scheme is unknown, or the file system cannot be reached.
    """
    import pyarrow.fs as pafs  # a third of a second, for those who have addresses

    try:
        return pafs.FileSystem.from_uri(text)
    except (OSError, ValueError, NotImplementedError) as error:
        raise StoreError(
            f"Cannot open {flag} {text}: {error}; pass a path, or a URI such as s3://bucket/folder, "
            "gs://bucket/folder or file:///folder."
        ) from error


__all__ = ["is_uri", "open_uri"]
