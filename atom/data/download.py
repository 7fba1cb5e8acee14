"""One file from the internet: bounded in time and size, checked, and moved into place when whole."""

import hashlib
import logging
import os
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from atom.errors import DataError

CONNECT_TIMEOUT_S = 20.0
"""Longest silence of a server, at the start and between two blocks."""
MAX_FILE_BYTES = 1 << 30
"""The largest file of any known source has 182 MB."""
BLOCK_BYTES = 1 << 20
REPORT_EVERY_BYTES = 25 * BLOCK_BYTES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A published file. The addresses and checksums are the publishers', the same that torchvision uses."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.url.rsplit("/", 1)[1]


def download(remote: RemoteFile, directory: Path, *, spec: str) -> Path:
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
        digest = _fetch(remote, draft)
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


def _fetch(remote: RemoteFile, draft: Path) -> str:
    """Write the answer to `draft` and return its MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    with urllib.request.urlopen(remote.url, timeout=CONNECT_TIMEOUT_S) as answer, ExitStack() as opened:
        # Only now: without a connection not even the directory is made.
        draft.parent.mkdir(parents=True, exist_ok=True)
        file = opened.enter_context(draft.open("wb"))
        while block := answer.read(BLOCK_BYTES):
            previous, received = received, received + len(block)
            if received > MAX_FILE_BYTES:
                raise urllib.error.URLError(f"longer than {MAX_FILE_BYTES} bytes")
            if received // REPORT_EVERY_BYTES > previous // REPORT_EVERY_BYTES:
                log.info("%s: %d MB", remote.name, received // 1_000_000)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()
