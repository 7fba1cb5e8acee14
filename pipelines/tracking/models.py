"""Networks as MLflow's models: written in its own flavour, pyfunc, without a pickle, and kept in its model registry."""

# N images, C channels, H height, W width, K classes

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from atom.errors import ConfigError
from atom.redact import without_secrets
from pipelines.tracking.backend import open_client
from pipelines.tracking.opening import experiment_id
from pipelines.tracking.sender import RefusedError, Sender
from pipelines.tracking.uri import sqlite_path, trouble_at

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import ModelSignature

logger = logging.getLogger(__name__)

CANDIDATE, CURRENT = "candidate", "current"
"""Aliases: of the version made last, and of the one in use."""

_OWNER, _VERSION, _MODEL = "atom.owner", "atom.version", "atom.model"
_CODE = Path(__file__).with_name("served_network.py")
_NEEDED = ("mlflow", "numpy", "pandas", "pillow", "torch")


@dataclass(frozen=True)
class Model:
    """A network to be served.

    Attributes:
        script: TorchScript, uint8 [N, C, H, W] to probabilities [N, K].
        classes: names by label.
        shape: [C, H, W] of the images.
        resize: what encoded images are cropped and resized to; None: as they are.
    """

    script: bytes
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    resize: int | None = None


@dataclass(frozen=True)
class Registered:
    """A place in the model registry.

    Attributes:
        name: of the registered model.
        owner: whose it is: versions of somebody else are never put beside those of this one.
        version: the owner's own name for it; the registry counts for itself.
    """

    name: str
    owner: str
    version: str


def save_model(model: Model, folder: Path, *, run_id: str | None = None, model_id: str | None = None) -> None:
    """Write what `mlflow.pyfunc.load_model` reads into a directory that does not exist."""
    from mlflow import pyfunc
    from mlflow.models import Model as Description

    with tempfile.TemporaryDirectory() as scratch:
        network, about = Path(scratch) / "network.pt", Path(scratch) / "about.json"
        network.write_bytes(model.script)
        told = {"classes": model.classes, "input": ["N", *model.shape], "resize": model.resize}
        about.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        description = Description(run_id=run_id, model_id=model_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # wants an example of an input
            pyfunc.save_model(
                path=str(folder),
                mlflow_model=description,
                python_model=str(_CODE),
                artifacts={"network": str(network), "about": str(about)},
                signature=_signature(),
                # The local part names a build, such as +cpu, which not every index has.
                pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in _NEEDED],
            )
    # Places on this machine, which nobody needs who has the directory.
    told = description.flavors["python_function"]
    told["model_code_path"] = _CODE.name
    for artifact in told["artifacts"].values():
        artifact["uri"] = artifact["path"]
    description.save(str(folder / "MLmodel"))


def publish(client: "MlflowClient", run_id: str, experiment: str, model: Model, at: Registered) -> None:
    """Log a model to its run and register it as the candidate; what is registered already stays.

    Args:
        client: of MLflow.
        run_id: of the run.
        experiment: its id.
        model: to be logged.
        at: its place in the registry.

    Raises:
        RefusedError: the name is taken by another owner.
    """
    found = _find(client, at)
    if found is None:
        logged = client.create_logged_model(experiment, name="model", source_run_id=run_id)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            save_model(model, folder, run_id=run_id, model_id=logged.model_id)
            client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
        found = client.create_model_version(
            at.name,
            source=logged.artifact_location,
            run_id=run_id,
            tags={_VERSION: at.version, _MODEL: logged.model_id},
            model_id=logged.model_id,
        )
    client.set_registered_model_alias(at.name, CANDIDATE, found.version)


def point(client: "MlflowClient", at: Registered) -> None:
    """Let the alias `current` name a version.

    Raises:
        RefusedError: it is not registered, or the name is another owner's.
    """
    found = _find(client, at)
    if found is None:
        raise RefusedError(f"model {at.name} has no version {at.version} there")
    client.set_registered_model_alias(at.name, CURRENT, found.version)


def point_current(uri: str, at: Registered) -> None:
    """As `point`, outside of a run: a warning where it cannot be, after a bounded wait."""
    _outside(uri, lambda client: point(client, at), otherwise=f"the alias {CURRENT} stays")


def replace_models(
    uri: str,
    gone: Sequence[Registered],
    *,
    experiment: str,
    run_name: str,
    model: Model | None,
    at: Registered,
) -> None:
    """Delete versions and their files, and publish another one as the current one; a warning where it cannot be.

    Args:
        uri: see `backend.default_tracking_uri`.
        gone: to be deleted, as far as they are there.
        experiment: that the new model belongs to, by name.
        run_name: of its run.
        model: None: nothing is published.
        at: its place.
    """

    def replace(client: "MlflowClient") -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        for one in gone:
            found = _find(client, one)
            if found is not None and found.source:
                get_artifact_repository(found.source, tracking_uri=uri).delete_artifacts()
                client.delete_model_version(found.name, found.version)
                client.delete_logged_model(found.tags[_MODEL])
        if model is not None:
            run_id, chosen = "", experiment_id(client, experiment)
            if _find(client, at) is None:
                # A server registers no model that is of no run.
                run_id = client.create_run(chosen, run_name=run_name).info.run_id
            publish(client, run_id, chosen, model, at)
            point(client, at)
            if run_id:
                client.set_terminated(run_id)

    known = ", ".join(one.version for one in gone)
    _outside(uri, replace, otherwise=f"models of versions {known} may still be in its registry")


def _outside(uri: str, action: "Callable[[MlflowClient], object]", *, otherwise: str) -> None:
    """Do it within a limit of time, or warn what is `otherwise`, and why."""
    trouble: list[str] = []

    def attempt() -> None:
        # Everything, as in `Sender`: it is told, and ends nothing.
        try:
            action(client)
        except Exception as error:
            trouble.append(" ".join(str(error).split())[:300])

    path = sqlite_path(uri)
    if path is not None and not path.exists():
        trouble.append(
            "there is no such file; pass --tracking-uri (or MLFLOW_TRACKING_URI) as for the versions"
        )
    else:
        try:
            client = open_client(uri)
        except ConfigError as error:
            trouble.append(str(error))
        else:
            sender = Sender(uri, lambda: trouble_at(uri))
            sender.put("change the models", attempt)
            sender.drain()
            if not trouble and (missing := sender.missing()):
                trouble.append(missing)
    for reason in trouble:
        logger.warning("MLflow at %s: %s: %s", without_secrets(uri), otherwise, without_secrets(reason))


def _find(client: "MlflowClient", at: Registered) -> "ModelVersion | None":
    """The version, if it is registered; the registered model is made if it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(at.name, tags={_OWNER: at.owner})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if client.get_registered_model(at.name).tags.get(_OWNER) != at.owner:
        raise RefusedError(
            f"the name {at.name} is that of another registered model; rename or delete that one"
        )
    known: Iterable[ModelVersion] = client.search_model_versions(f"name = '{at.name}'")
    return next((one for one in known if one.tags.get(_VERSION) == at.version), None)


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array, Map

    return ModelSignature(
        inputs=Schema(
            [
                ColSpec(DataType.string, "image", required=False),
                ColSpec(Array(Array(Array(DataType.long))), "pixels", required=False),
            ]
        ),
        outputs=Schema([ColSpec(DataType.string, "class"), ColSpec(Map(DataType.double), "probabilities")]),
    )


__all__ = ["Model", "Registered", "point", "point_current", "publish", "replace_models", "save_model"]
