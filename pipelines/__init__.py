"""The commands, and what they share: the Ray cluster, the store, progress, and MLflow tracking."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The directory in which `atom`, `apps` and `pipelines` lie."""


def _prefer_siblings() -> None:
    """Put directories that hold another `atom` or `apps`, a package or a file, last on the import path.

    `python -m` puts the working directory first, a Ray job the directory that was sent along.
    """
    for name in ("atom", "apps"):
        for _ in range(len(sys.path)):
            spec = PathFinder.find_spec(name)
            if spec is None or spec.origin is None:
                break
            depth = 1 if spec.submodule_search_locations else 0
            found = Path(spec.origin).resolve().parents[depth]
            if found == ROOT:
                break
            sys.path.sort(key=lambda entry, other=found: Path(entry).resolve() == other)


_prefer_siblings()
