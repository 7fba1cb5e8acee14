"""One file from the internet: bounded in time and size, checked, and moved into place when whole."""

import hashlib
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from atom.errors import DataError

CONNECT_TIMEOUT_S = 20.0
"""Longest silence of a server, at the start and between two blocks."""
STALL_S, STALL_BYTES = 60.0, 1 << 20
"""A server that gives less than this in that time is given up: a set would take hours."""
MAX_FILE_BYTES = 1 << 30
"""The largest file of any known source has 182 MB."""
BLOCK_BYTES = 1 << 20

OnDownload = Callable[[str, int, int | None], None]
"""Called with a file's name, the bytes received, and all its bytes if known: at the start, then with every block."""

log = logging.getLogger(__name__)
_now_s = time.monotonic


@dataclass(frozen=True)
class RemoteFile:
    """A published file. The addresses and checksums are the publishers', the same that torchvision uses."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.url.rsplit("/", 1)[1]


def download(
    remote: RemoteFile, directory: Path, *, spec: str, on_download: OnDownload | None = None
) -> Path:
    """Fetch one file into `directory` and return its path.

    The file appears under its name only when it is whole and its checksum is right, so an interrupted
    download leaves nothing that a later run could take for data.

    Raises:
        DataError: no connection, an answer that is not the file, or nowhere to put it.
    """
    target = directory / remote.name
    advice = (
        f"connect to the internet, or put {remote.name} into {directory} yourself "
        "(docs/data-sources.md shows the layouts), or name another place with --data-dir."
    )
    log.info("downloading %s to %s", remote.url, target)
    draft = directory / f".download-{os.getpid()}-{remote.name}"
    try:
        digest = _fetch(remote, draft, on_download or _silent)
        if digest != remote.md5:
            raise DataError(
                f"{spec}: {remote.url} answered with another file "
                f"(MD5 {digest}, expected {remote.md5}); {advice}"
            )
        draft.replace(target)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{spec}: {remote.url} could not be fetched to {target} ({reason}); {advice}"
        ) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return target


def file_md5(file: Path) -> str:
    """MD5 of a file, in hexadecimal.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); fetch the file again.") from error


def _silent(_name: str, _received: int, _total: int | None) -> None:
    """A library says nothing."""


def _fetch(remote: RemoteFile, draft: Path, on_download: OnDownload) -> str:
    """Write the answer to `draft` and return its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    on_download(remote.name, 0, None)
    with urllib.request.urlopen(remote.url, timeout=CONNECT_TIMEOUT_S) as answer, ExitStack() as opened:
        length = answer.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        # Only now: without a connection not even the directory is made.
        draft.parent.mkdir(parents=True, exist_ok=True)
        file = opened.enter_context(draft.open("wb"))
        since_s, before = _now_s(), 0
        # read1 returns what there is: read would wait for a whole block, however slowly its bytes come.
        while block := answer.read1(BLOCK_BYTES):
            received += len(block)
            if received > MAX_FILE_BYTES:
                raise urllib.error.URLError(f"longer than {MAX_FILE_BYTES} bytes")
            digest.update(block)
            file.write(block)
            on_download(remote.name, received, total)
            if (now_s := _now_s()) - since_s >= STALL_S:
                if received - before < STALL_BYTES:
                    raise urllib.error.URLError(
                        f"only {received - before} bytes came in {now_s - since_s:.0f} s"
                    )
                since_s, before = now_s, received
    if total is not None and received < total:
        raise urllib.error.URLError(f"the connection ended after {received} of {total} bytes")
    return digest.hexdigest()
