"""What a cluster user submits: it parses, fits its schema, and calls commands that exist."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from rayff.cli import parse
from rayff.train import DESCRIPTION, TrainCommand

JOBS = Path(__file__).parents[2] / "jobs"


def manifest(name: str) -> Any:
    return yaml.safe_load((JOBS / name).read_text())


def train_flags(command: str) -> TrainCommand:
    """Read the flags of a training as the command itself does."""
    words = shlex.split(command.partition("python -m rayff.train")[2])
    flags = [word for word in words if not word.startswith("$")]
    return parse(TrainCommand, module="rayff.train", description=DESCRIPTION, args=flags)


def test_the_cluster_launcher_file_fits_rays_schema() -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    cluster = manifest("cluster.yaml")
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]


@pytest.mark.parametrize("name", ["submit.sh", "slurm.sh"])
def test_the_scripts_are_shell(name: str) -> None:
    checked = subprocess.run(["bash", "-n", str(JOBS / name)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    "flags", [[], ["--arch", "resnet"], ["--run-dir", "runs/first"], ["--run-dir="]], ids=str
)
def test_a_submission_says_where_the_run_is_kept(flags: list[str]) -> None:
    refused = subprocess.run([JOBS / "submit.sh", *flags], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --run-dir: give a full path of the head node")


class TestKubeRay:
    def test_a_job_calls_a_training_that_can_be(self) -> None:
        job = manifest("kuberay-rayjob.yaml")
        assert job["kind"] == "RayJob"
        (script,) = shlex.split(job["spec"]["entrypoint"])[2:]
        command = train_flags(script)
        assert (command.arch, command.elastic, command.max_failures) == ("resnet", "1:4", -1)
        workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        assert workers["maxReplicas"] == command.elastic_range[1]  # a stage on each
        assert workers["minReplicas"] == command.elastic_range[0]

    @pytest.mark.parametrize("name", ["kuberay-rayjob.yaml", "kuberay-raycluster.yaml"])
    def test_volumes_that_are_mounted_are_there(self, name: str) -> None:
        spec = manifest(name)["spec"]
        cluster = spec.get("rayClusterSpec", spec)
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        for group in groups:
            pod = group["template"]["spec"]
            volumes = {volume["name"] for volume in pod.get("volumes", [])}
            for container in pod["containers"]:
                assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
                assert container["resources"]["limits"] == container["resources"]["requests"]


@pytest.mark.parametrize("path", sorted(JOBS.iterdir()), ids=lambda path: path.name)
def test_the_examples_in_comments_are_trainings(path: Path) -> None:
    text = re.sub(r" \\\n#\s+", " ", path.read_text())
    examples = re.findall(r"#\s+(?:\S+=\S+ )?(?:sbatch )?jobs/\S+\.sh (--.*)", text)
    for flags in examples:
        command = train_flags(f"python -m rayff.train {flags}")
        assert command.arch == "resnet"
        assert command.run_dir is not None
    if path.suffix == ".sh":
        assert examples
