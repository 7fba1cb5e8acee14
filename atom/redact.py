"""Texts without the passwords that addresses carry: what is printed, stored or published goes through here."""

import re

HIDDEN = "***"
_SECRET = "password|passwd|pwd|secret|token|credential|signature|sig|key"
_USER = re.compile(
    # The whole authority up to its last @, as browsers read it; and, where somebody did not quote the password,
    # everything up to an @: unless what follows the colon is a port.
    # No scheme is longer; without a bound, a picture inside a page, letters by the hundred thousand, takes minutes.
    r"""(?P<scheme>[a-z][a-z0-9+.-]{0,30}:/{2,})"""
    r"""(?:[^/?\#\s"'<>]*|[^/?\#\s"'<>@:]*:(?!\d{1,5}(?:[/?\#\s"'<>]|$))[^\s"'<>]*)@""",
    re.IGNORECASE,
)
_QUERY = re.compile(rf"""([?&][^=&\s"'<>]*(?:{_SECRET})[^=&\s"'<>]*=)[^&\s"'<>]+""", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """The text with user names, passwords and keys of the addresses in it replaced.

    >>> without_secrets("MLflow at https://alice:s3cret@mlflow.example:5000/#/runs")
    'MLflow at https://***@mlflow.example:5000/#/runs'
    """
    return _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(rf"\g<scheme>{HIDDEN}@", text))
