"""For the tests that run whole commands."""

from collections.abc import Iterator
from pathlib import Path

import command_runs
import pytest


@pytest.fixture(scope="module")
def ready_tables(mlflow_template: Path) -> Iterator[None]:
    """New outputs of commands hold MLflow's tables already."""
    command_runs.tables = mlflow_template
    yield
    command_runs.tables = None
