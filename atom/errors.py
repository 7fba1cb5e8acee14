"""The errors a user can cause or meet, each message one sentence: what, where, received, expected, next step."""

from atom.redact import without_secrets


class AtomError(Exception):
    """Base of all errors of this project; a command prints its message and exits with code 2.

    Messages quote what users pass and what libraries say, so passwords in addresses are taken out here.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(without_secrets(str(message)))


class ConfigError(AtomError):
    """A setting is unknown, out of range, or does not fit the data or another setting."""


class ShapeError(AtomError):
    """A tensor has the wrong number of dimensions or the wrong size."""


class DataError(AtomError):
    """A source of real images is missing, broken, or not what its layout promises."""


class ArtifactError(AtomError):
    """A distilled set on disk is incomplete, damaged, of another version, or unsafe to read."""


class NotFiniteError(AtomError):
    """A network's weights or outputs hold NaN or infinity: its training diverged, and its answers mean nothing."""


class StoreError(AtomError):
    """An output directory cannot be written, or belongs to other settings."""


class ClusterError(AtomError):
    """The Ray cluster cannot serve what was asked for."""
