"""What a cluster user submits: it parses, fits its schema, and calls commands that exist."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from rayff.cli import parse
from rayff.train import DESCRIPTION, TrainCommand

JOBS = Path(__file__).parents[2] / "jobs"
BIN = Path(sys.executable).parent
KUBERAY = ("kuberay-rayjob.yaml", "kuberay-raycluster.yaml")

WHOLE: Any = {"type": "integer", "minimum": 0}
TEXT: Any = {"type": "string"}
SWITCH: Any = {"type": "boolean"}
TEXTS: Any = {"type": "object", "additionalProperties": TEXT}


def closed(schema: Any) -> Any:
    """Return a schema whose objects have no other properties."""
    if not isinstance(schema, dict):
        return schema
    if "type" in schema and isinstance(schema["type"], str):
        return schema
    return {
        "type": "object",
        "properties": {name: closed(kind) for name, kind in schema.items()},
        "additionalProperties": False,
    }


def list_of(kind: Any) -> Any:
    return {"type": "array", "items": closed(kind)}


PROBE = {
    "httpGet": {"path": TEXT, "port": WHOLE},
    **{f"{name}Seconds": WHOLE for name in ("initialDelay", "period", "timeout")},
    "failureThreshold": WHOLE,
}
CONTAINER = {
    "name": TEXT,
    "image": TEXT,
    "ports": list_of({"containerPort": WHOLE, "name": TEXT}),
    "resources": {"limits": TEXTS, "requests": TEXTS},
    "readinessProbe": PROBE,
    "livenessProbe": PROBE,
    "volumeMounts": list_of({"name": TEXT, "mountPath": TEXT, "readOnly": SWITCH}),
}
POD = {
    "securityContext": {"runAsUser": WHOLE, "runAsNonRoot": SWITCH, "fsGroup": WHOLE},
    "containers": list_of(CONTAINER),
    "volumes": list_of(
        {"name": TEXT, "persistentVolumeClaim": {"claimName": TEXT, "readOnly": SWITCH}}
    ),
}
GROUP = {"rayStartParams": TEXTS, "template": {"spec": POD}}
CLUSTER = {
    "rayVersion": TEXT,
    "authOptions": {"mode": {"type": "string", "enum": ["disabled", "token"]}},
    "enableInTreeAutoscaling": SWITCH,
    "autoscalerOptions": {
        "version": {"type": "string", "enum": ["v1", "v2"]},
        "idleTimeoutSeconds": WHOLE,
    },
    "headGroupSpec": GROUP,
    "workerGroupSpecs": list_of(
        {
            **GROUP,
            "groupName": TEXT,
            **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), WHOLE),
        }
    ),
}
JOB = {
    "entrypoint": TEXT,
    "runtimeEnvYAML": TEXT,
    "backoffLimit": WHOLE,
    "shutdownAfterJobFinishes": SWITCH,
    "ttlSecondsAfterFinished": WHOLE,
    "rayClusterSpec": CLUSTER,
}
NAMED = {"apiVersion": {"type": "string", "const": "ray.io/v1"}, "kind": TEXT}
KINDS = {"RayJob": {**NAMED, "spec": JOB}, "RayCluster": {**NAMED, "spec": CLUSTER}}
"""What the definitions of KubeRay 1.6.2 and 1.7.0 say of the fields in use."""


def manifest(name: str) -> Any:
    return yaml.safe_load((JOBS / name).read_text())


def cluster_of(name: str) -> Any:
    """Return the cluster of a KubeRay manifest."""
    spec = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def groups(name: str) -> list[Any]:
    """Return the groups of pods of a KubeRay manifest."""
    cluster = cluster_of(name)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def train_flags(command: str) -> TrainCommand:
    """Read the flags of a training as the command itself does."""
    flags = shlex.split(command.partition("python -m rayff.train")[2].partition(";")[0])
    return parse(TrainCommand, module="rayff.train", description=DESCRIPTION, args=flags)


def test_the_cluster_launcher_file_fits_rays_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    cluster = manifest("cluster.yaml")
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]


@pytest.mark.parametrize(
    "command", ["shellcheck submit.sh slurm.sh", "hadolint Dockerfile"], ids=str
)
def test_linters_find_nothing(command: str) -> None:
    program, *files = command.split()
    checked = subprocess.run([BIN / program, *files], cwd=JOBS, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_image_has_what_is_installed_and_the_ray_of_the_manifests() -> None:
    lines = (JOBS / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    assert copied == {"pyproject.toml", "README.md", "LICENSE", "rayff", "tune_spaces"}
    assert all((JOBS.parent / path).exists() for path in copied)
    (ray_version,) = re.findall(r"ray\[default\]==([\d.]+)", "\n".join(lines))
    assert {cluster_of(name)["rayVersion"] for name in KUBERAY} == {ray_version}
    assert f"ray[default]=={ray_version}" in (JOBS / "cluster.yaml").read_text()


@pytest.mark.parametrize(
    "flags", [[], ["--arch", "resnet"], ["--run-dir", "runs/first"], ["--run-dir="]], ids=str
)
def test_a_submission_says_where_the_run_is_kept(flags: list[str]) -> None:
    refused = subprocess.run([JOBS / "submit.sh", *flags], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --run-dir: give a full path of the head node")


@pytest.mark.parametrize("name", KUBERAY)
class TestKubeRay:
    def test_has_no_field_that_kuberay_does_not_know(self, name: str) -> None:
        kind = manifest(name)
        del kind["metadata"]
        jsonschema.validate(kind, closed(KINDS[kind["kind"]]))

    def test_asks_for_what_it_may_use_and_is_probed(self, name: str) -> None:
        for group in groups(name):
            for container in group["template"]["spec"]["containers"]:
                assert container["resources"]["limits"] == container["resources"]["requests"]
                for probe in ("readinessProbe", "livenessProbe"):
                    assert container[probe]["httpGet"] == {"path": "/api/healthz", "port": 52365}

    def test_claims_the_volumes_that_are_mounted(self, name: str) -> None:
        claims = list(yaml.safe_load_all((JOBS / "kuberay-storage.yaml").read_text()))
        names = {claim["metadata"]["name"] for claim in claims}
        for group in groups(name):
            pod = group["template"]["spec"]
            volumes = {volume["name"] for volume in pod["volumes"]}
            claimed = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
            assert claimed <= names
            for container in pod["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_a_kuberay_job_calls_trainings_that_can_be() -> None:
    job = manifest("kuberay-rayjob.yaml")
    assert "$" not in job["spec"]["entrypoint"], "Ray quotes it anew, and a shell would expand it"
    (script,) = shlex.split(job["spec"]["entrypoint"])[2:]
    again, first = (train_flags(part) for part in script.split("else"))
    assert again.resume
    assert again.run_dir == first.run_dir
    assert (first.arch, first.elastic, first.max_failures) == ("resnet", "1:4", -1)
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["maxReplicas"] == first.elastic_range[1]  # a stage on each
    assert workers["minReplicas"] == first.elastic_range[0]


@pytest.mark.parametrize("path", sorted(JOBS.iterdir()), ids=lambda path: path.name)
def test_the_examples_in_comments_are_trainings(path: Path) -> None:
    text = re.sub(r" \\\n#\s+", " ", path.read_text())
    examples = re.findall(r"#\s+(?:\S+=\S+ )?(?:sbatch .*)?jobs/\S+\.sh (--.*)", text)
    for flags in examples:
        command = train_flags(f"python -m rayff.train {flags}")
        assert command.arch == "resnet"
        assert command.run_dir is not None
    if path.suffix == ".sh":
        assert examples
