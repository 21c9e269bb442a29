"""Real jobs on a real head node: its job server takes them, runs them and stops them."""

import json
import re
import shlex
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from rayff import TrainConfig
from rayff.engine.evaluation import evaluate
from tests.helpers.runs import layer_files, train_locally
from tests.helpers.stages import OPTIONS, as_flags
from tests.helpers.tiny_task import write_tiny_task
from tests.jobs.ray_nodes import (
    PATIENCE_S,
    REPOSITORY,
    environment,
    free_ports,
    ray_node,
    short_folder,
    wait_until,
)

pytestmark = pytest.mark.ray

RUN_DIRECTORY = {
    "architecture.json",
    "checkpoints",
    "config.json",
    "events.jsonl",
    "log.txt",
    "metrics.csv",
    "metrics.parquet",
    "model.safetensors",
    "run.json",
    "tensorboard",
    "timeline.parquet",
}


@dataclass(frozen=True)
class Done:
    """A submission that was followed to the job's end."""

    code: int
    client_output: str
    log: str
    """Output of the job."""


@dataclass(frozen=True)
class Head:
    """A node with a job server."""

    process: psutil.Process
    url: str
    environment: dict[str, str]
    """Of clients."""

    def ask(self, path: str, method: str = "GET") -> Any:
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request = urllib.request.Request(
            f"{self.url}/api/{path}", headers={"Authorization": f"Bearer {token}"}, method=method
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)

    def is_up(self) -> bool:
        assert self.process.is_running()
        try:
            return bool(self.ask("version"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def run(self, *command: str | Path) -> Done:
        """Run a command that submits a job and follows it."""
        done = subprocess.run(
            list(map(str, command)),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * PATIENCE_S,
        )
        found = re.search(r"Job '(\w+)' submitted", done.stdout)
        assert found, done.stdout
        return Done(code=done.returncode, client_output=done.stdout, log=self.log(found[1]))

    def log(self, job: str) -> str:
        """Return a job's output, without Ray's own lines above."""
        text: str = self.ask(f"jobs/{job}/logs")["logs"]
        return text.partition("Running entrypoint for job ")[2].partition("\n")[2]

    def stages(self) -> list[psutil.Process]:
        family = self.process.children(recursive=True)
        return [p for p in family if "StageActor" in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    folder = tmp_path_factory.mktemp("head")
    own = environment(folder)
    port, dashboard_port, client_port = free_ports(3)
    flags = (
        f"--head --port={port} --dashboard-port={dashboard_port} --dashboard-host=127.0.0.1 "
        f"--ray-client-server-port={client_port} --num-cpus=2 --object-store-memory=200000000"
    ).split()
    url = f"http://127.0.0.1:{dashboard_port}"
    with (
        short_folder() as temp_dir,
        ray_node(folder / "log", own, *flags, "--temp-dir", temp_dir) as process,
    ):
        head = Head(process, url, {**own, "RAY_API_SERVER_ADDRESS": url})
        wait_until(head.is_up, PATIENCE_S, "the dashboard")
        yield head


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_task(tmp_path_factory.mktemp("task"), num_train=640)


@pytest.fixture
def options(task: str) -> dict[str, Any]:
    return {**OPTIONS, "task": task, "chunk": 1}


class TestAJobFromAClone:
    def test_trains_to_its_end_and_prints_plain_lines(
        self, head: Head, options: dict[str, Any], tmp_path: Path
    ) -> None:
        run_dir = tmp_path / "whole run"  # a name that needs quotes
        submit_sh = REPOSITORY / "jobs/submit.sh"
        job = head.run(submit_sh, *as_flags(options, stages=2, run_dir=run_dir))
        assert job.code == 0, job.client_output
        assert {path.name for path in run_dir.iterdir()} == RUN_DIRECTORY
        assert 0 <= evaluate(run_dir).accuracy <= 100
        assert not re.search(r"[^\n -~]", job.log)
        lines = job.log.splitlines()
        assert f"run directory {run_dir}" in lines
        assert sum(line.startswith("epoch 3/3  loss ") for line in lines) == 1
        assert lines[-2].startswith("all 3 epochs done, after ")
        assert lines[-1].startswith("test accuracy by readout: window ")
        assert all(line in job.client_output for line in lines)

    @pytest.mark.slow
    def test_with_a_mistake_or_without_its_data_fails_with_one_sentence(
        self, head: Head, tmp_path: Path
    ) -> None:
        mistakes = {
            "--arch=resnt": r"error: --arch: .* 'resnt' \(did you mean 'resnet'\?\)",
            "--task=mnist --data-dir=/nowhere": r"error: .*/nowhere",
        }

        def submit(flags: str) -> Done:
            submit_sh = REPOSITORY / "jobs/submit.sh"
            run_dir = tmp_path / flags[2:6]
            return head.run(submit_sh, *flags.split(), f"--run-dir={run_dir}")

        with ThreadPoolExecutor() as pool:  # side by side, for they mostly wait
            submitted = list(pool.map(submit, mistakes))
        for done, sentence in zip(submitted, mistakes.values(), strict=True):
            assert done.code == 1, done.client_output
            assert "failed with exit code 2" in done.client_output
            assert re.fullmatch(f"([a-z][^:\\n]*\\n)*{sentence}[^\\n]*\\n", done.log)
        assert not any(tmp_path.iterdir())


@pytest.mark.slow
class TestAJobOfTheInstalledPackage:
    """It has no working directory: the nodes have the package. KubeRay submits one so."""

    def test_that_is_stopped_leaves_a_checkpoint_and_no_actor_and_resumes_with_the_same_bits(
        self, head: Head, options: dict[str, Any], tmp_path: Path
    ) -> None:
        options, run_dir = {**options, "epochs": 12}, tmp_path / "run"
        spec = yaml.safe_load((REPOSITORY / "jobs/kuberay-rayjob.yaml").read_text())["spec"]
        entrypoint = spec["entrypoint"].replace("/runs/resnet", str(run_dir))
        flags = " ".join(as_flags(options, stages=2))
        entrypoint = re.sub(r"--arch .* -1", flags, entrypoint)
        waits = json.dumps(yaml.safe_load(spec["runtimeEnvYAML"]))
        submit = ["ray", "job", "submit", "--runtime-env-json", waits]
        train = shlex.split(entrypoint)
        with subprocess.Popen(
            [*submit, "--submission-id=stopped", "--", *train],
            env=head.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as client:
            wait_until(
                lambda: any(run_dir.glob("checkpoints/step-*/manifest.json")),
                PATIENCE_S,
                "a checkpoint",
            )
            assert len(head.stages()) == 2
            # as `ray job stop` does, whose start may take longer than the training
            assert head.ask("jobs/stopped/stop", method="POST") == {"stopped": True}
            client.communicate(timeout=PATIENCE_S)
        assert head.ask("jobs/stopped")["status"] == "STOPPED"
        log = head.log("stopped")
        assert "warning: SIGTERM: stopping after the chunks in flight" in log
        end, readouts, remedy = log.splitlines()[-3:]
        assert end.startswith("ended ")
        assert readouts.startswith("test accuracy by readout: window ")
        assert remedy == f"continue with: rayff train --run-dir {run_dir} --resume"
        wait_until(lambda: not head.stages(), PATIENCE_S, "the actors to be gone")
        reached = int(max(path.name for path in run_dir.glob("checkpoints/step-*"))[5:])
        assert reached < 12 * 40

        again = head.run(*submit, "--", *train)
        assert again.code == 0, again.client_output
        assert f"resumed from the checkpoint of step {reached}\n" in again.log
        assert {path.name for path in run_dir.iterdir()} == RUN_DIRECTORY
        alone = train_locally(TrainConfig(**options, run_dir=str(tmp_path / "alone")))
        assert layer_files(run_dir) == layer_files(alone.run_dir)
