"""Two nodes that share no network but a cable, and a run that goes on when it is cut.

Two network namespaces, joined by a pair of virtual interfaces, each with a Ray node that sees
files of its own in Ray's folder; the driver is on the head.

    machine a: 10.213.0.1, head, driver  ---- veth ----  machine b: 10.213.0.2
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayff import TrainConfig
from rayff.distributed.local_cluster import SYSTEM
from tests.helpers.runs import events, layer_files, train_locally
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

ADDRESSES = ("10.213.0.1", "10.213.0.2")


@dataclass(frozen=True)
class Machines:
    """Two namespaces with a node in each."""

    names: tuple[str, str]
    environment: dict[str, str]
    """Of the driver."""
    started: list[psutil.Process] = field(default_factory=list)

    def plug(self, state: str) -> None:
        """Set the interface of machine b up or down."""
        ip("-n", self.names[1], "link", "set", "wire", state)

    def train(self, options: dict[str, Any], log: Path) -> psutil.Process:
        """Start a training with its driver on machine a, and a stage or replica on each."""
        flags = as_flags(options, placement="strict_spread")
        command = [sys.executable, "-m", "rayff.train", *flags]
        with log.open("w") as output:
            process = psutil.Popen(
                ["ip", "netns", "exec", self.names[0], *command],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
            )
        self.started.append(process)
        return process


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def wire(names: tuple[str, str]) -> None:
    """Join the namespaces; each finds the other, and its own address, as on a real network."""
    for name in names:
        ip("-n", name, "link", "set", "lo", "up")
    ip("-n", names[0], *"link add wire type veth peer name wire netns".split(), names[1])
    for name, own, other in zip(names, ADDRESSES, reversed(ADDRESSES), strict=True):
        ip("-n", name, "address", "add", f"{own}/24", "dev", "wire")
        ip("-n", name, "link", "set", "wire", "up")
        ip("-n", name, "route", "add", "default", "via", other)


@pytest.fixture(scope="module")
def namespaces() -> Iterator[tuple[str, str]]:
    if not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("needs the commands ip and unshare, to make network namespaces")
    names = (f"rayff-{os.getpid()}-a", f"rayff-{os.getpid()}-b")
    with ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "delete", name)
            wire(names)
            ip("netns", "exec", names[1], "unshare", "--mount", "true")
        except OSError as error:
            pytest.skip(f"may not make network namespaces here: {error}")
        yield names


@pytest.fixture(scope="module")
def machines(
    namespaces: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Machines]:
    folder = tmp_path_factory.mktemp("machines")
    own = environment(folder)
    port, client_port, *_ = free_ports(2)
    address = f"{ADDRESSES[0]}:{port}"
    head = (
        f"--head --port={port} --node-ip-address={ADDRESSES[0]} --include-dashboard=false "
        f"--ray-client-server-port={client_port}"
    ).split()
    node = [f"--address={address}", f"--node-ip-address={ADDRESSES[1]}"]
    size = ["--num-cpus=2", "--object-store-memory=200000000"]
    (folder / "b").mkdir()
    with ExitStack() as stack:
        temp_dir = stack.enter_context(short_folder())
        apart = f'mount --bind "{folder}/b" "{temp_dir}" && exec "$@"'
        prefixes = [["ip", "netns", "exec", name] for name in namespaces]
        prefixes[1] += ["unshare", "--mount", "sh", "-c", apart, "sh"]
        stack.enter_context(
            ray_node(
                folder / "a.log",
                own,
                *head,
                *size,
                f"--temp-dir={temp_dir}",
                f"--system-config={json.dumps(SYSTEM)}",
                prefix=prefixes[0],
            )
        )
        stack.enter_context(ray_node(folder / "b.log", own, *node, *size, prefix=prefixes[1]))
        machines = Machines(namespaces, {**own, "RAY_ADDRESS": address})
        try:
            yield machines
        finally:
            for process in machines.started:
                if process.is_running():
                    process.kill()
                process.wait()
            machines.plug("up")  # or it would try for half a minute to take its leave


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    task = write_tiny_task(tmp_path_factory.mktemp("task"), num_train=640)
    return {**OPTIONS, "task": task, "chunk": 1}


def test_replicas_and_the_direct_transport_connect_over_the_cable(
    machines: Machines, options: dict[str, Any], tmp_path: Path
) -> None:
    """Each machine resolves its own name to 127.0.0.1, where the other one is not."""
    runs = {"replicas": {"replicas": 2}, "direct": {"stages": 2, "transport": "gloo"}}
    started = {
        name: machines.train(
            {**options, **plan, "epochs": 1, "run_dir": tmp_path / name}, tmp_path / f"{name}.log"
        )
        for name, plan in runs.items()
    }
    for name, process in started.items():
        log = tmp_path / f"{name}.log"
        assert process.wait(2 * PATIENCE_S) == 0, log.read_text()
        assert all(address in log.read_text() for address in ADDRESSES)


def test_a_run_ends_with_the_same_bits_when_the_cable_is_cut(
    machines: Machines, options: dict[str, Any], tmp_path: Path
) -> None:
    options = {**options, "epochs": 8}
    cut, log = tmp_path / "cut", tmp_path / "cut.log"
    process = machines.train({**options, "stages": 2, "run_dir": cut}, log)
    wait_until(lambda: any(cut.glob("checkpoints/step-*")), PATIENCE_S, "a checkpoint")
    machines.plug("down")
    cut_at = time.time()
    assert process.wait(2 * PATIENCE_S) == 0, log.read_text()

    pattern = r"^2 stages \(layers? \S+ on (\S+) \| layers? \S+ on (\S+)\), 1 CPU each;"
    found = re.search(pattern, log.read_text(), re.MULTILINE)
    assert found, log.read_text()
    assert set(found.groups()) == set(ADDRESSES)
    assert re.fullmatch(r"[\n -~]*", log.read_text()), "plain lines, also when a node is lost"
    (failure,) = events(cut, "failure")
    assert failure["stage"].endswith(" on 10.213.0.2)")
    assert failure["time"] - cut_at < 20
    assert [len(event["stages"]) for event in events(cut, "planned")] == [2, 1]
    assert [event["stages"] for event in events(cut, "running")] == [2, 1]

    alone = train_locally(TrainConfig(**options, run_dir=str(tmp_path / "alone"))).run_dir
    assert (cut / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    assert layer_files(cut) == layer_files(alone)
