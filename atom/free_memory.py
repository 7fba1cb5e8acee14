"""How much memory a process of this machine, or of this container, can still take."""

from contextlib import suppress
from pathlib import Path, PurePosixPath

_MEMINFO, _OWN_GROUPS, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_VERSION_2 = ("memory.max", "memory.current", "")
_CACHES = ("inactive_file", "active_file")
"""Pages of files that the system gives up where memory is short: a mapped set that was read twice is the second."""


def free_memory() -> int | None:
    """Bytes that can be had without swapping, caches given up; None where the system does not tell, as outside Linux.

    The least of what the machine has and what the limits of the process's memory cgroup and of all above it leave, of
    both versions.
    Source: Linux, proc(5) and cgroups(7).
    """
    free = [] if (machine := _of_machine()) is None else [machine]
    for folder in _group_folders():
        names = _VERSION_1 if (folder / _VERSION_1[0]).exists() else _VERSION_2
        left = _of_group(folder, *names)
        if left is not None:
            free.append(left)
    return min(free, default=None)


def _of_machine() -> int | None:
    with suppress(OSError, ValueError):
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _group_folders() -> list[Path]:
    """Of the process's own group, as the machine calls it, of those above it, and of the outermost one that is seen."""
    folders = [_GROUPS, _GROUPS / "memory"]
    with suppress(OSError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            own = PurePosixPath(path.lstrip("/"))
            # A group above what a container sees is told as "/..", and is not there.
            if ".." not in own.parts and (not controllers or "memory" in controllers.split(",")):
                folders += [_GROUPS / controllers / group for group in (own, *own.parents)]
    return list(dict.fromkeys(folders))


def _of_group(folder: Path, limit: str, usage: str, prefix: str) -> int | None:
    with suppress(OSError, ValueError):
        # "max" is no number: there is no limit.
        left = int((folder / limit).read_text()) - int((folder / usage).read_text())
        caches = {prefix + name for name in _CACHES}
        for line in (folder / "memory.stat").read_text().splitlines():
            name, value = line.split()
            if name in caches:
                left += int(value)
        return max(0, left)
    return None


__all__ = ["free_memory"]
