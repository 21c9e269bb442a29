"""Checks of Ray: it starts or can be joined, and its nodes fit."""

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.filesize import decimal

from rayff.distributed.placement import nodes
from rayff.distributed.session import ray_session
from rayff.doctor.check import CheckResult, fail, note, ok, one_line, slow
from rayff.doctor.software import unmet_requirements

TASK_TIMEOUT_S = 60.0
"""A node may have to start a worker first."""


def token() -> CheckResult:
    """Check that a token is set where the cluster asks for one; it is never shown."""
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    source = str(file) if file.is_file() else "not set"
    if os.environ.get("RAY_AUTH_TOKEN"):
        source = "RAY_AUTH_TOKEN"
    text = f"RAY_AUTH_MODE: {mode}, token: {source}"
    if mode == "token" and source == "not set" and os.environ.get("RAY_ADDRESS"):
        return fail(text, "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token")
    return ok(text)


def job_submission() -> CheckResult:
    """Check that `ray job submit` has its packages."""
    if unmet := unmet_requirements("ray", "default"):
        return note("; ".join(unmet), "pip install 'ray[default]' for ray job submit")
    return ok("ray[default] is installed")


def connect(stack: ExitStack) -> CheckResult:
    """Join the cluster of RAY_ADDRESS, or start a local Ray; `stack` takes the connection.

    Raises:
        UserError: the cluster cannot be joined.
    """
    address = os.environ.get("RAY_ADDRESS")
    start = time.perf_counter()
    stack.enter_context(ray_session())
    how = f"joined {address}" if address else "a local Ray started"
    return ok(f"{how} in {time.perf_counter() - start:.1f} s")


def node_resources() -> CheckResult | None:
    """Check that nodes have CPUs and object stores that hold chunks."""
    if not ray.is_initialized():
        return None
    alive = nodes()
    kinds = Counter(
        f"{node.cpus:g} CPUs, {node.gpus:g} GPUs, {decimal(int(node.store_bytes))} object store"
        for node in alive
    )
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    text = "; ".join(f"{count} x ({kind})" for kind, count in kinds.items())
    text += f"; free: {free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs"
    if not any(node.cpus for node in alive):
        return fail(text, "add a node with CPUs: ray start --address ...")
    if min(node.store_bytes for node in alive) < 200e6:
        remedy = "start nodes with a larger --object-store-memory and /dev/shm"
        return slow(f"{text}; few chunks fit into the smallest object store", remedy)
    return ok(text)


def node_versions() -> CheckResult | None:
    """Run a task on every node and compare its versions with those of this process."""
    if not ray.is_initialized():
        return None
    return compare_versions(versions(), _ask(versions, _alive()))


def node_gpus() -> CheckResult | None:
    """Check that torch sees the GPUs of nodes that Ray counts some on."""
    if not ray.is_initialized():
        return None
    with_gpus = [node for node in _alive() if node["Resources"].get("GPU")]
    return compare_gpus(_ask(gpus_of_torch, with_gpus)) if with_gpus else None


def _alive() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in found if node["Alive"]]


def _ask(question: Callable[[], str], there: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Call a function in a task on each node; return pairs of host name and answer."""
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(question)
    pins = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in there]
    calls = [remote.options(scheduling_strategy=pin).remote() for pin in pins]
    ready, _ = ray.wait(calls, num_returns=len(calls), timeout=TASK_TIMEOUT_S)
    answers = []
    for node, call in zip(there, calls, strict=True):
        try:
            answer = ray.get(call) if call in ready else f"no answer for {TASK_TIMEOUT_S:g} s"
        except Exception as error:  # an import on the node may raise anything
            answer = one_line(str(error).rpartition("Error: ")[2])
        answers.append((node["NodeManagerHostname"], answer))
    return answers


def versions() -> str:
    """Return the versions that must be the same on all nodes."""
    return f"Python {platform.python_version()}, ray {ray.__version__}, torch {torch.__version__}"


def compare_versions(own: str, answers: Sequence[tuple[str, str]]) -> CheckResult:
    """Compare this process with the answers of the nodes: pairs of host name and versions."""
    others = [f"{host}: {answer}" for host, answer in answers if answer != own]
    if others:
        text = f"{own} here, but not on {len(others)} of {len(answers)} nodes ({others[0]})"
        return fail(text, "install the same packages on all, or submit a job with --working-dir")
    return ok(f"{own} on all {len(answers)}")


def gpus_of_torch() -> str:
    """Return an empty text where torch sees a GPU, and else why not."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except Exception as error:  # it says why; AssertionError where torch is built for CPUs
        return one_line(error)
    return ""


def compare_gpus(answers: Sequence[tuple[str, str]]) -> CheckResult:
    """Judge the answers of the nodes with GPUs: pairs of host name and what keeps torch."""
    blind = [f"{host}: {answer}" for host, answer in answers if answer]
    if blind:
        text = f"torch sees none on {len(blind)} of {len(answers)} nodes with GPUs ({blind[0]})"
        remedy = "install torch for the driver of the node, or start it with --num-gpus 0"
        return fail(f"{text}; stages run on CPUs unless --device cuda is given", remedy)
    return ok(f"torch sees those of all {len(answers)} nodes with GPUs")
