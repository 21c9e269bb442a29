"""jobs/slurm.sh on a real Slurm: trains over its nodes, is cancelled, and goes on."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rayff import TrainConfig
from rayff.distributed.session import TIMED_OUT
from tests.helpers.runs import events, layer_files, train_locally
from tests.helpers.stages import OPTIONS, as_flags
from tests.helpers.tiny_task import write_tiny_task
from tests.jobs.ray_nodes import PATIENCE_S, REPOSITORY, wait_until
from tests.jobs.slurm_nodes import NODES, PROGRAMS, slurm

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Cluster:
    """A Slurm, and a clone to submit from."""

    environment: dict[str, str]
    clone: Path

    def command(self, *words: str) -> str:
        done = subprocess.run(
            words, env=self.environment, cwd=self.clone, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, flags: list[str]) -> tuple[str, Path]:
        """Submit a training on both nodes; return the job and its output."""
        size = ["--nodes=2", "--cpus-per-task=1", "--mem=3000"]
        job = self.command("sbatch", "--parsable", *size, "jobs/slurm.sh", *flags).strip()
        return job, self.clone / f"slurm-{job}.out"

    def is_there(self, job: str) -> bool:
        return job in self.command("squeue", "--noheader", "--format=%i").split()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.getuid() or not all(map(shutil.which, PROGRAMS)):
        pytest.skip(f"needs root and the commands {', '.join(PROGRAMS)}")
    clone = tmp_path_factory.mktemp("clone")
    _write_environment(clone / ".venv")
    (clone / "jobs").symlink_to(REPOSITORY / "jobs")
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield Cluster({**environment, "PYTHONPATH": str(REPOSITORY)}, clone)


RAY = """#!/usr/bin/env bash
tried="$(dirname "$0")/tried-$SLURMD_NODENAME"
if [[ $1 = start && ! -e $tried ]]; then
  touch "$tried"
  echo "Exception: The current node {said}" >&2
  exit 1
fi
exec {prefix}/bin/ray "$@"
"""


def _write_environment(folder: Path) -> None:
    """Write this virtual environment, with a Ray that is too slow at its first start on a node."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to(f"{sys.prefix}/bin/python")
    for each in ("lib", "pyvenv.cfg"):
        (folder / each).symlink_to(f"{sys.prefix}/{each}")
    ray = folder / "bin/ray"
    ray.write_text(RAY.format(said=TIMED_OUT, prefix=sys.prefix))
    ray.chmod(0o755)


def test_a_job_over_two_nodes_is_cancelled_and_resumed_with_the_same_bits(
    cluster: Cluster, tmp_path: Path
) -> None:
    task = write_tiny_task(tmp_path, num_train=640)
    options: dict[str, Any] = {**OPTIONS, "task": task, "chunk": 1, "epochs": 12}
    run = tmp_path / "run"
    plan = {"stages": 2, "placement": "strict_spread", "run_dir": run}
    job, output = cluster.submit(as_flags(options, **plan))
    wait_until(
        lambda: any(run.glob("checkpoints/step-*")) or not cluster.is_there(job),
        2 * PATIENCE_S,
        "a checkpoint",
    )
    cancelled_at = time.monotonic()
    cluster.command("scancel", "--batch", "--signal=TERM", job)
    wait_until(lambda: not cluster.is_there(job), PATIENCE_S, "the job to leave")
    assert time.monotonic() - cancelled_at < 15
    assert "warning: SIGTERM: stopping after the chunks in flight" in output.read_text()
    assert f"continue with: rayff train --run-dir {run} --resume" in output.read_text()
    (planned,) = events(run, "planned")
    assert len({stage.partition(" on ")[2] for stage in planned["stages"]}) == len(NODES)
    for node in NODES:
        assert (
            f"Ray did not start on {node} within its 30 s (attempt 1 of 3)" in output.read_text()
        )

    job, output = cluster.submit(["--run-dir", str(run), "--resume"])
    wait_until(lambda: not cluster.is_there(job), 2 * PATIENCE_S, "the job to end")
    assert "all 12 epochs done" in output.read_text()
    assert not list(Path("/tmp").glob("rayff-slurm-*"))
    assert not list(cluster.clone.glob(".ray-token-*"))
    alone = train_locally(TrainConfig(**options, run_dir=str(tmp_path / "alone")))
    assert layer_files(run) == layer_files(alone.run_dir)
