import pickle

import pytest

from atom.errors import ConfigError, StoreError
from atom.redact import without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://alice:s3cret@host:5000/a", "http://***@host:5000/a"),
        ("s3://KEY:SECRET@bucket/out and s3://K:S@b", "s3://***@bucket/out and s3://***@b"),
        ("s3://KEY:SEC/RET+x==@bucket/out", "s3://***@bucket/out"),
        ("http://alice:p@ss@host", "http://***@host"),
        ("postgresql+psycopg2://u:p%40w@10.0.0.1/db", "postgresql+psycopg2://***@10.0.0.1/db"),
        ("https://token@host/x", "https://***@host/x"),
        ('{"uri": "http://a:b@h", "mail": "x@y.z"}', '{"uri": "http://***@h", "mail": "x@y.z"}'),
        (
            "postgresql://h/db?user=u&password=pw&sslmode=on",
            "postgresql://h/db?user=u&password=***&sslmode=on",
        ),
        (
            "https://b.example/o?X-Amz-Signature=abc&amp;sig=def",
            "https://b.example/o?X-Amz-Signature=***&amp;sig=***",
        ),
    ],
)
def test_passwords_of_addresses_are_taken_out(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/a@b",
        "http://[::1]:5000/#/experiments",
        "alice@example.org, folder:/data/a@b",
        "sqlite:////tmp/a@b/mlflow.db",
        "file:///tmp/me@home/set",
        "runs:/0123/set",
        "http://host/x?page=2&monkey_business",
    ],
)
def test_what_holds_no_password_stays_as_it_is(text: str) -> None:
    assert without_secrets(text) == text


def test_no_error_of_this_project_tells_a_password() -> None:
    error = ConfigError("--tracking-uri http://alice:s3cret@host: does not answer.")
    assert str(error) == "--tracking-uri http://***@host: does not answer."
    assert str(pickle.loads(pickle.dumps(StoreError("s3://K:S@b")))) == "s3://***@b"


def test_pages_with_pictures_inside_are_looked_through() -> None:
    picture = "data:image/svg+xml;base64," + "QUJD" * 100_000
    address = "https://alice:s3cret@host/"
    assert without_secrets(picture + address + picture) == f"{picture}https://***@host/{picture}"
