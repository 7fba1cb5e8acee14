"""The most memory that this process held since somebody last asked."""

import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_OF_PEAK = "5"
"""What the kernel takes to begin its count of the largest resident size anew. Source: Linux, proc(5)."""


@dataclass(frozen=True)
class Peak:
    """Of a worker process, bytes.

    Attributes:
        host: the most that was resident: libraries, shared images that were looked at, and what the process keeps of
            its work before.
        device: the most that PyTorch held on the GPU; None without one.
    """

    host: int
    device: int | None = None

    def or_more(self, other: "Peak | None") -> "Peak":
        """The larger of each."""
        if other is None:
            return self
        device = max((one.device for one in (self, other) if one.device is not None), default=None)
        return Peak(max(self.host, other.host), device)


def begin() -> None:
    """Count anew; where the system cannot, as outside Linux, the peak is that of the whole life of the process."""
    with suppress(OSError):
        _RESET.write_text(_OF_PEAK)
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()


def peak() -> Peak:
    """Since `begin`."""
    cuda = _cuda()
    return Peak(_resident(), None if cuda is None else cuda.max_memory_allocated())


def _resident() -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Kilobytes, but on a Mac bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cuda() -> Any:
    # Looked up, not imported: a process that has not imported it holds nothing.
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


__all__ = ["Peak", "begin", "peak"]
