"""For all tests: two processes, a small Ray cluster and an MLflow database to copy in each, one thread."""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Of every Ray that is started here: otherwise it ends the processes of finished tasks while actors hold its two CPUs,
# and the next tasks wait for new ones to import torch.
os.environ.setdefault("RAY_num_workers_soft_limit", "8")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Two processes for whole folders, one for tests that somebody names, unless -n says how many."""
    asked = config.option.numprocesses is not None or hasattr(config, "workerinput")
    if not asked and all(Path(argument).is_dir() for argument in config.args):
        config.option.numprocesses = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tests that are too long, and too much for a busy machine, to be run each time."""
    parser.addoption("--nodes", action="store_true", help="run tests that start clusters of several nodes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first, then those on Ray, the slow ones last; otherwise in the order of the files.

    Between processes files are dealt out in the order of their first tests: long ones first, so that short ones fill
    what is left at the end.
    """
    if not config.getoption("--nodes"):
        skip = pytest.mark.skip(reason="starts clusters of several nodes, which takes minutes; pass --nodes")
        for item in items:
            if item.get_closest_marker("nodes"):
                item.add_marker(skip)
    items.sort(key=_cost)
    if hasattr(config, "workerinput"):
        cost: dict[Path, tuple[bool, bool]] = {}
        for item in items:
            cost[item.path] = max(_cost(item), cost.get(item.path, (False, False)))
        items.sort(key=lambda item: cost[item.path], reverse=True)


def _cost(item: pytest.Item) -> tuple[bool, bool]:
    return bool(item.get_closest_marker("slow")), bool(item.get_closest_marker("ray"))


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
    """A private Ray with 2 CPUs, of this process; the address keeps it off every other cluster of this machine."""
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
def s3_server() -> Iterator[str]:
    """Address of an S3 server of this process, whose objects lie in memory."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], str]:
    """Puts a directory into a bucket, and returns the URI; credentials come from the environment."""
    import pyarrow.fs as pafs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "me",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    server = pafs.S3FileSystem(endpoint_override=s3_server, region="us-east-1", allow_bucket_creation=True)
    server.create_dir("images")

    def put(directory: Path, name: str) -> str:
        pafs.copy_files(str(directory), f"images/{name}", pafs.LocalFileSystem(), server)
        return f"s3://images/{name}"

    return put


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
