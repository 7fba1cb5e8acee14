"""For all tests: one small Ray cluster, one MLflow database to copy, one thread, fast tests first."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then those on Ray, the slow ones last; otherwise in the order of the files."""
    items.sort(key=lambda item: (bool(item.get_closest_marker("slow")), bool(item.get_closest_marker("ray"))))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Another number of threads sums in another order and gives other bits."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which everything that the project imports seems to lie."""
    folder = tmp_path_factory.mktemp("traps")
    for name in ("pipelines", "atom", "apps", "torch", "statistics"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise ImportError('from the working directory')\n")
    return folder


@pytest.fixture(scope="session")
def ray_cluster(traps: Path) -> Iterator[None]:
    """A private Ray with 2 CPUs; the address keeps it off every other cluster of this machine."""
    import logging

    import ray

    from pipelines.workers.cluster import OwnPath, private_token

    with private_token():
        with contextlib.chdir(traps):
            ray.init(
                address="local",
                num_cpus=2,
                object_store_memory=200 * 2**20,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                job_config=OwnPath(),
            )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, which take seconds to make."""
    from pipelines.tracking.backend import open_client

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_client(f"sqlite:///{path}")
    return path


@pytest.fixture
def mlflow_uri(mlflow_template: Path, tmp_path: Path) -> str:
    """Tracking URI of a fresh MLflow database in the test's own folder."""
    path = tmp_path / "mlflow.db"
    shutil.copy(mlflow_template, path)
    return f"sqlite:///{path}"
