"""The files that start a cluster: valid for what reads them, and of commands that this project has."""

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.console.commands import DistillCommand
from pipelines.console.options import parse
from pipelines.workers.nodes import ClusterInfo
from pipelines.workers.resources import choose_size

ROOT = Path(__file__).parents[1]


def fields(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """JSON schema of an object that has no other fields than these."""
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **optional},
        "additionalProperties": False,
    }


TEXT, WORDS = {"type": "string"}, {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
CONTAINER = fields(
    {"name": TEXT, "image": TEXT, "resources": fields({"requests": WORDS, "limits": WORDS})},
    env={"type": "array", "items": fields({"name": TEXT, "value": TEXT})},
    volumeMounts={"type": "array", "items": fields({"name": TEXT, "mountPath": TEXT})},
)
VOLUME = fields(
    {"name": TEXT},
    emptyDir=fields({"medium": {"const": "Memory"}, "sizeLimit": TEXT}),
    persistentVolumeClaim=fields({"claimName": TEXT}),
)
POD = fields(
    {
        "spec": fields(
            {"containers": {"type": "array", "minItems": 1, "items": CONTAINER}},
            nodeSelector=WORDS,
            volumes={"type": "array", "items": VOLUME},
        )
    }
)
WORKERS = fields(
    {
        "groupName": TEXT,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "rayStartParams": WORDS,
        "template": POD,
    }
)
RAY_JOB = fields(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": fields({"name": TEXT}),
        "spec": fields(
            {
                "entrypoint": TEXT,
                "rayClusterSpec": fields(
                    {
                        "rayVersion": TEXT,
                        "headGroupSpec": fields({"rayStartParams": WORDS, "template": POD}),
                        "workerGroupSpecs": {"type": "array", "minItems": 1, "items": WORKERS},
                    },
                    enableInTreeAutoscaling={"type": "boolean"},
                    autoscalerOptions=fields(
                        {},
                        idleTimeoutSeconds=COUNT,
                        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
                    ),
                ),
            },
            backoffLimit=COUNT,
            shutdownAfterJobFinishes={"type": "boolean"},
            ttlSecondsAfterFinished=COUNT,
        ),
    }
)
"""The fields of KubeRay's RayJob that are used here, and no others, so that a typing error is none of them."""


@pytest.fixture(scope="module")
def ray_job() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text())


def test_the_ray_job_has_the_fields_of_its_kind(ray_job: dict[str, Any]) -> None:
    jsonschema.validate(ray_job, RAY_JOB)
    for group in ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    pods = json.dumps(ray_job["spec"]["rayClusterSpec"])
    assert pods.count('"mountPath": "/dev/shm"') == pods.count('"medium": "Memory"') == 2


def test_the_ray_job_runs_a_command_that_its_parser_takes(ray_job: dict[str, Any]) -> None:
    prog, *arguments = shlex.split(ray_job["spec"]["entrypoint"])
    assert prog == "atom-distill"
    command = parse(DistillCommand, arguments)
    # With no node at the start, nothing else tells what it is to compute on.
    size, device_kind = choose_size(
        ClusterInfo("job", 0.0, 0.0, 1, (0.0,), (0.0,), node_accelerators=("",)),
        command.cluster,
        threads=1,
        num_units=9,
    )
    assert (device_kind, size.accelerator, size.gpus) == ("cuda", "H100", 1.0)
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    kept = [mount["mountPath"] for mount in head["volumeMounts"]]
    assert str(Path(command.output or "").parent) in kept
    assert str(command.data.data_dir).startswith(tuple(kept))


def test_the_ray_job_has_the_major_version_of_ray_that_is_tested(ray_job: dict[str, Any]) -> None:
    import ray

    assert ray_job["spec"]["rayClusterSpec"]["rayVersion"].split(".")[0] == ray.__version__.split(".")[0]


def test_the_cluster_file_is_valid_installs_the_project_and_joins_the_cluster() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    # Against Ray's schema, as `ray up` does it once it has filled in what the file leaves out.
    validate_config(prepare_config(copy.deepcopy(content)))
    assert any("pip install ~/atom-distill" in command for command in content["setup_commands"])
    assert content["file_mounts"] == {"~/atom-distill": "."}
    # Without the variable the driver would compute in a private cluster on the head alone.
    assert any("RAY_ADDRESS=auto" in command for command in content["setup_commands"])
