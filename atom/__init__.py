"""Attention-mixer dataset distillation: the core, which needs neither Ray nor MLflow.

The main names are here, `docs/core.md` shows them at work; each is imported when it is first asked for, so that
`import atom` costs nothing. `evaluate` lies in `atom.evaluate`: a package cannot hold both a module and a
function of that name.

Example:
    >>> from atom import DistillSettings
    >>> DistillSettings(ipc=10).method
    'atom'
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atom.data import load
    from atom.distilled import DistilledSet
    from atom.errors import AtomError
    from atom.methods.lookup import find_method
    from atom.methods.method import About, Method, Part, State
    from atom.methods.settings import DistillSettings
    from atom.methods.soundness import joined
    from atom.preprocess import Preprocess
    from atom.resolve import resolve_settings
    from atom.settings import EvaluateSettings, OwnTraining, Settings

try:
    __version__ = version("atom-distill")
except PackageNotFoundError:
    # A checkout that runs without being installed, as a Ray job's copy does.
    __version__ = "0+unknown"

__all__ = [
    "About",
    "AtomError",
    "DistillSettings",
    "DistilledSet",
    "EvaluateSettings",
    "Method",
    "OwnTraining",
    "Part",
    "Preprocess",
    "Settings",
    "State",
    "find_method",
    "joined",
    "load",
    "resolve_settings",
]

_HOME = {
    "About": "atom.methods.method",
    "AtomError": "atom.errors",
    "DistillSettings": "atom.methods.settings",
    "DistilledSet": "atom.distilled",
    "EvaluateSettings": "atom.settings",
    "Method": "atom.methods.method",
    "OwnTraining": "atom.settings",
    "Part": "atom.methods.method",
    "Preprocess": "atom.preprocess",
    "Settings": "atom.settings",
    "State": "atom.methods.method",
    "find_method": "atom.methods.lookup",
    "joined": "atom.methods.soundness",
    "load": "atom.data",
    "resolve_settings": "atom.resolve",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'atom' has no attribute {name!r}; its names are {', '.join(__all__)}.")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
