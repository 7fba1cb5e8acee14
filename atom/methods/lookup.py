"""A method by its name, and what an output or a set says of it."""

from pathlib import PurePath

from atom.errors import ConfigError
from atom.methods.method import Method
from atom.methods.registry import class_of, is_own
from atom.methods.settings import DistillSettings, unread
from atom.nets.identity import sources_digest

SHARED_VERSION = 3
"""To be raised whenever starts, random numbers, augmentations or anything else that methods share come to give other
images by equal settings."""


def find_method(name: str) -> type[Method]:
    """The method that a name means.

    Raises:
        ConfigError: the name is unknown; a user's own cannot be imported, or is no `Method`.
    """
    found = class_of(name)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(
            f"method {name!r}: found {found!r}, expected a subclass of atom.methods.method.Method."
        )
    missing = sorted({*found.__abstractmethods__, *([] if hasattr(found, "about") else ["about"])})
    if missing:
        raise ConfigError(
            f"method {name!r}: {found.__name__} lacks {', '.join(missing)}; see docs/add-a-method.md."
        )
    if not callable(found.learns_labels):
        raise ConfigError(
            f"method {name!r}: its learns_labels is {found.learns_labels!r}, expected a classmethod of settings; see"
            " docs/add-a-method.md."
        )
    if strange := sorted(found.unread - DistillSettings.model_fields.keys()):
        raise ConfigError(
            f"method {name!r}: its unread names {strange[0]!r}, which is no setting; correct it."
        )
    return found


READ_BY_TEACHERS = frozenset({"network", "dsa_strategy"})
"""Settings that decide teachers, see `atom.methods.teachers`, whatever the method."""


def check_read(settings: DistillSettings, *, taught: bool = False) -> None:
    """Refuse settings that nothing reads.

    Args:
        settings: of the distillation.
        taught: whether teachers label the images.

    Raises:
        ConfigError: one has another value than its default.
    """
    method = find_method(settings.method)
    for name in sorted(method.unread - (READ_BY_TEACHERS if taught else frozenset())):
        if getattr(settings, name) != type(settings).model_fields[name].default:
            raise ConfigError(unread(name, settings.method, []))


def method_identity(name: str) -> str:
    """A method's name, and of a user's own the digest of its sources, wherever they lie.

    Raises:
        ConfigError: see `find_method`.
    """
    return f"{PurePath(name).name}@{sources_digest(find_method(name))}" if is_own(name) else name


def images_version(name: str) -> str:
    """Of what all methods share, and of the method: part of what an output or a stored image belongs to."""
    return f"{SHARED_VERSION}.{find_method(name).version}"


def told_about(name: str) -> dict[str, str]:
    """What a set says of a method that is not this project's; see `DistilledSet.about`."""
    about = find_method(name).about
    return {"made_by": about.made_by, "citation": about.citation} if is_own(name) else {}


__all__ = ["check_read", "find_method", "images_version", "method_identity", "told_about"]
