"""Ray itself fails under a training: it ends with a sentence, a checkpoint and exit code 1."""

import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayff import TrainConfig
from tests.helpers.runs import layer_files, train_locally
from tests.helpers.stages import OPTIONS, as_flags
from tests.helpers.tiny_task import write_tiny_task
from tests.jobs.ray_nodes import (
    PATIENCE_S,
    environment,
    free_ports,
    ray_node,
    short_folder,
    wait_until,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

IN_A_NAMESPACE = """\
"$@" & training=$!
until ls "$RUN"/checkpoints/step-*/manifest.json > /dev/null 2>&1; do
  kill -0 $training || exit 9
  sleep 0.1
done
ray stop > /dev/null
wait $training; code=$?
sleep 2  # the namespace ends with this shell
exit $code
"""


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    task = write_tiny_task(tmp_path, num_train=640)
    return {**OPTIONS, "task": task, "chunk": 1, "epochs": 5}


def command(options: dict[str, Any], run: Path) -> list[str]:
    return [sys.executable, "-m", "rayff.train", *as_flags(options, stages=2, run_dir=run)]


def has_checkpoint(run: Path) -> bool:
    return any(run.glob("checkpoints/step-*/manifest.json"))


@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_a_crash_of_the_cluster_ends_the_run_which_goes_on_with_the_same_bits(
    victim: str, options: dict[str, Any], tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    own = environment(tmp_path)
    port, client_port = free_ports(2)
    flags = f"--head --port={port} --ray-client-server-port={client_port} --num-cpus=2"
    flags += " --include-dashboard=false --object-store-memory=200000000"
    with ExitStack() as stack:
        temp_dir = f"--temp-dir={stack.enter_context(short_folder())}"
        node = stack.enter_context(ray_node(tmp_path / "head", own, *flags.split(), temp_dir))
        driver = psutil.Popen(
            command(options, run),
            env={**own, "RAY_ADDRESS": f"127.0.0.1:{port}"},
            stdout=stack.enter_context(log.open("w")),
            stderr=subprocess.STDOUT,
        )
        wait_until(lambda: has_checkpoint(run) or not driver.is_running(), PATIENCE_S, "training")
        (process,) = [p for p in node.children(recursive=True) if p.name() == victim]
        process.kill()
        began = time.monotonic()
        assert driver.wait(PATIENCE_S) == 1, log.read_text()
        assert time.monotonic() - began < 15
    last = log.read_text().splitlines()[-1]
    assert re.fullmatch(
        r"error: the (Ray node of this process|head of Ray) at \S+ has ended, as after `ray "
        r"stop` or a crash; its newest "
        rf"checkpoint is on disk, continue with: rayff train --run-dir {run} --resume",
        last,
    ), log.read_text()
    assert log.read_text().count("continue with") == 1
    train_locally(TrainConfig(**options, run_dir=str(run)), resume=True)
    alone = train_locally(TrainConfig(**options, run_dir=str(tmp_path / "alone")))
    assert layer_files(run) == layer_files(alone.run_dir)


def test_ray_stop_ends_a_local_run_which_leaves_nothing_behind(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """In a process namespace, for `ray stop` ends whatever it sees."""
    apart = ["unshare", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"]).returncode:
        pytest.skip("may not make process namespaces here")
    run, endless = tmp_path / "run", {**options, "epochs": 1000}  # until `ray stop` has begun
    with short_folder() as folder:
        done = subprocess.run(
            [*apart, "sh", "-c", IN_A_NAMESPACE, "sh", *command(endless, run)],
            env={**environment(tmp_path), "RUN": str(run), "RAY_TMPDIR": folder},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * PATIENCE_S,
        )
        assert done.returncode == 1, done.stdout
        assert not list(Path(folder).iterdir())
    sentences = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, done.stdout
    assert re.match(r"error: the Ray node of this process .*has ended", sentences[0])
    assert sentences[0].endswith(f"continue with: rayff train --run-dir {run} --resume")
    assert has_checkpoint(run)
