"""What the doctor looks at with Ray: whether one starts or answers, and what its nodes are."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayff.distributed.placement import Node, nodes
from rayff.distributed.session import ray_session
from rayff.doctor.check import (
    Check,
    CheckResult,
    fails,
    note,
    ok,
    one_line,
    size,
    slow,
)
from rayff.doctor.software import requirements

SMALL_STORE_BYTES = 200 * 2**20
"""Below which an object store holds few chunks of the larger networks."""
JOIN_S = 30.0
PATIENCE_S = 60.0
"""For a task; a node may have to start a worker for it."""


@dataclass(frozen=True, kw_only=True)
class Programs:
    """What runs on a node."""

    host: str
    python: str
    ray: str
    torch: str
    niceness: int

    @property
    def versions(self) -> tuple[str, str, str]:
        """What must be the same on all nodes."""
        return self.python, self.ray, self.torch


def ray_checks() -> Iterator[tuple[str, Check]]:
    """Yield the checks by name; Ray is started or joined by one, and left at the end."""
    yield "Ray's token", token
    yield "Ray's job server", job_packages
    with ExitStack() as stack:
        yield "Ray", functools.partial(connect, stack)
        if ray.is_initialized():
            yield "nodes", lambda: describe(nodes())
            yield "object stores", lambda: stores(nodes())
            yield "programs of the nodes", lambda: same_programs(programs_here(), ask_nodes())


def token() -> CheckResult:
    """Tell how processes prove to Ray that they belong to it."""
    mode = os.environ.get("RAY_AUTH_MODE")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    where = "in RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else None
    if where is None and file.is_file():
        where = f"in {file}"
    found = f"RAY_AUTH_MODE is {mode or 'not set'}, a token is {where or 'not here'}"
    if mode == "token" and where is None and os.environ.get("RAY_ADDRESS"):
        return fails(
            found, "get the cluster's token: RAY_AUTH_TOKEN, or a file RAY_AUTH_TOKEN_PATH"
        )
    return ok(found)


def job_packages() -> CheckResult:
    """Tell whether jobs can be submitted from here."""
    missing = set()
    for requirement in requirements("ray"):
        marker = requirement.marker
        if marker is None or not marker.evaluate({"extra": "default"}):
            continue
        try:
            metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.add(requirement.name)
    if missing:
        return note(
            f"ray job submit needs {', '.join(sorted(missing))}", "pip install 'ray[default]'"
        )
    return ok("its packages are here (ray[default])")


def connect(stack: ExitStack) -> CheckResult:
    """Start a local Ray, or join the cluster of RAY_ADDRESS, and run a task; `stack` leaves it.

    Raises:
        UserError: the cluster does not answer.
    """
    address = os.environ.get("RAY_ADDRESS")
    if address and not joins():
        return fails(
            f"{address} (RAY_ADDRESS) is no Ray cluster that can be joined within {JOIN_S:g} s",
            "check that it is the address of a head node (host:6379) and that this machine can "
            "reach its ports",
        )
    start = time.perf_counter()
    stack.enter_context(ray_session())
    started_s = time.perf_counter() - start
    done = _remote_programs().remote()
    if not ray.wait([done], timeout=PATIENCE_S)[0]:
        return fails(
            f"no task ran within {PATIENCE_S:g} s: {_unused()}",
            "wait for the other work, or look at ray status",
        )
    programs = ray.get(done)
    task_s = time.perf_counter() - start - started_s
    how = f"the cluster at {address} answers" if address else "a local one starts"
    return ok(
        f"{how} in {started_s:.1f} s, a first task takes {task_s:.1f} s; "
        f"workers at nice {programs.niceness}"
    )


def joins() -> bool:
    """Tell whether joining the cluster comes to an end; Ray may wait for minutes, or abort."""
    program = "from rayff.distributed.session import ray_session\nwith ray_session(): pass"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, timeout=JOIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode >= 0  # an error is told where it is met again


def describe(there: list[Node]) -> CheckResult:
    """Tell what the nodes have."""
    found = " + ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in there)
    if not any(node.cpus for node in there):
        return fails(
            f"{len(there)} without CPUs ({found})", "add a node with CPUs: ray start --address ..."
        )
    return ok(f"{len(there)}: {found}; {_unused()}")


def stores(there: list[Node]) -> CheckResult:
    """Tell what the object stores hold."""
    found = ", ".join(size(node.store_bytes) for node in there)
    if min(node.store_bytes for node in there) < SMALL_STORE_BYTES:
        return slow(
            f"{found}: few chunks fit, so --window becomes small",
            "start those nodes with a larger --object-store-memory (and /dev/shm)",
        )
    return ok(found)


def same_programs(here: Programs, found: list[Programs | str]) -> CheckResult:
    """Compare the programs of the nodes with those of this process.

    Args:
        here: of this process.
        found: of each node, or why it did not tell.
    """
    silent = [answer for answer in found if isinstance(answer, str)]
    if silent:
        return fails(
            f"{len(silent)} of {len(found)} nodes cannot run this package ({silent[0]})",
            "install it there, or submit a job with --working-dir",
        )
    odd = [node for node in found if isinstance(node, Programs) and node.versions != here.versions]
    mine = f"Python {here.python}, ray {here.ray}, torch {here.torch}"
    if odd:
        first = odd[0]
        return fails(
            f"{len(odd)} of {len(found)} nodes differ from {mine}: {first.host} has Python "
            f"{first.python}, ray {first.ray}, torch {first.torch}",
            "install the same versions everywhere, or one container image",
        )
    return ok(f"the same on {len(found)} of {len(found)}: {mine}")


def programs_here() -> Programs:
    """Return the programs of this process."""
    return Programs(
        host=platform.node(),
        python=platform.python_version(),
        ray=ray.__version__,
        torch=metadata.version("torch"),
        niceness=os.getpriority(os.PRIO_PROCESS, 0),
    )


def ask_nodes() -> list[Programs | str]:
    """Return the programs of each node, or why it does not tell."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node["NodeID"] for node in found if node["Alive"]]
    asked = [
        _remote_programs()
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote()
        for node in alive
    ]
    done, _ = ray.wait(asked, num_returns=len(asked), timeout=PATIENCE_S)
    answers: list[Programs | str] = []
    for reference in asked:
        try:
            answers.append(
                ray.get(reference) if reference in done else f"silent for {PATIENCE_S:g} s"
            )
        except Exception as error:  # of Ray, or of whatever is missing there
            answers.append(one_line(error).rpartition("Error: ")[2])
    return answers


def _remote_programs() -> Any:
    wrap: Any = ray.remote
    return wrap(num_cpus=0, max_retries=0)(programs_here)


def _unused() -> str:
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return f"{free.get('CPU', 0.0):g} CPUs and {free.get('GPU', 0.0):g} GPUs are unused"
