"""Attention-mixer dataset distillation: the core, which needs neither Ray nor MLflow.

The main names are here, `docs/core.md` shows them at work; each is imported when it is first asked for, so that
`import atom` costs nothing. `evaluate` lies in `atom.evaluate`: a package cannot hold both a module and a
function of that name.

Example:
    >>> from atom import DistillSettings
    >>> DistillSettings(ipc=10).mode
    'atom'
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atom.data import load
    from atom.distill import GroupDistiller, GroupState
    from atom.distilled import DistilledSet
    from atom.errors import AtomError
    from atom.preprocess import Preprocess
    from atom.resolve import resolve_settings
    from atom.settings import DistillSettings, EvaluateSettings

try:
    __version__ = version("atom-distill")
except PackageNotFoundError:
    # A checkout that runs without being installed, as a Ray job's copy does.
    __version__ = "0+unknown"

__all__ = [
    "AtomError",
    "DistillSettings",
    "DistilledSet",
    "EvaluateSettings",
    "GroupDistiller",
    "GroupState",
    "Preprocess",
    "load",
    "resolve_settings",
]

_HOME = {
    "AtomError": "atom.errors",
    "DistillSettings": "atom.settings",
    "DistilledSet": "atom.distilled",
    "EvaluateSettings": "atom.settings",
    "GroupDistiller": "atom.distill",
    "GroupState": "atom.distill",
    "Preprocess": "atom.preprocess",
    "load": "atom.data",
    "resolve_settings": "atom.resolve",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'atom' has no attribute {name!r}; its names are {', '.join(__all__)}.")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
