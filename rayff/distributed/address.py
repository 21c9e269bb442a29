"""The address of a cluster, checked before Ray joins it: Ray itself would try for minutes."""

from __future__ import annotations

import json
import platform
import queue
import socket
import threading
from typing import Any

import psutil
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # made by Cython
from ray.exceptions import AuthenticationError

from rayff.config.errors import UserError

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 8.0
"""How long the head may take to answer once its port is open."""
DEFAULT_PORT = 6379


def check_address(address: str) -> None:
    """Check that a cluster can be joined from this machine.

    Args:
        address: as RAY_ADDRESS has it; "auto" is left to Ray.

    Raises:
        UserError: it cannot; within 15 s, with the cause and the remedy.
    """
    if address == "auto":
        return
    host, port = _host_and_port(address)
    _check_port(address, host, port)
    cluster, nodes = _ask_head(address)
    _check_versions(address, cluster)
    _check_node(address, nodes)


def _host_and_port(address: str) -> tuple[str, int]:
    scheme, _, rest = address.rpartition("://")
    host = rest.strip("/").rpartition(":")[0] or rest.strip("/")
    if scheme.startswith("http"):
        raise UserError(
            f"RAY_ADDRESS={address} is the address of a dashboard, for `ray job submit`; to train "
            f"on a node of the cluster set RAY_ADDRESS={host}:{DEFAULT_PORT}"
        )
    if scheme:
        raise UserError(
            f"RAY_ADDRESS={address}: {scheme}:// is for Ray Client, which rayff does not use; set "
            f"RAY_ADDRESS={host}:{DEFAULT_PORT} on a node of the cluster, or use `ray job submit`"
        )
    host, colon, port = rest.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(
            f"RAY_ADDRESS={address} names no port; set it to HOST:PORT of the head node, as `ray "
            f"start --head` printed it, such as {host or rest}:{DEFAULT_PORT}"
        )
    return host.strip("[]"), int(port)


def _check_port(address: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        cause = error.strerror or f"no answer in {CONNECT_TIMEOUT_S:g} s"
        raise UserError(
            f"the Ray cluster at {address} (RAY_ADDRESS) did not answer: {cause}; start it with "
            "`ray start --head`, correct RAY_ADDRESS, or unset it to train on this machine alone"
        ) from error


def _ask_head(address: str) -> tuple[dict[str, str], list[Any]]:
    """Return what the head says of the cluster's versions, and its nodes that are alive."""
    answers: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            client = GcsClient(address=address)
            metadata = client.internal_kv_get(
                b"CLUSTER_METADATA", namespace=b"cluster", timeout=ANSWER_TIMEOUT_S
            )
            nodes = client.get_all_node_info(timeout=ANSWER_TIMEOUT_S).values()
            answers.put((json.loads(metadata or b"{}"), [n for n in nodes if n.state == 0]))
        except Exception as error:  # Ray's own, of many kinds
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_TIMEOUT_S)
    except queue.Empty:
        answer = TimeoutError()
    if isinstance(answer, AuthenticationError) or "nauthenticated" in str(answer):
        raise UserError(
            f"the Ray cluster at {address} (RAY_ADDRESS) refused the token; set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token of its "
            "head node"
        ) from answer
    if isinstance(answer, Exception):
        raise UserError(
            f"what listens at {address} (RAY_ADDRESS) is not the head of a Ray cluster, or too "
            "busy to answer; set RAY_ADDRESS to HOST:PORT as `ray start --head` printed it, and "
            "RAY_AUTH_MODE and the token to those of the cluster"
        ) from answer
    metadata, nodes = answer
    return metadata, nodes


def _check_versions(address: str, cluster: dict[str, str]) -> None:
    """Raise where Ray would: the versions must be the same, and Python's to its last digit."""
    own = {"ray_version": ray.__version__, "python_version": platform.python_version()}
    there = {name: cluster.get(name, version) for name, version in own.items()}
    if there != own:
        shown = [f"Ray {v['ray_version']} and Python {v['python_version']}" for v in (there, own)]
        raise UserError(
            f"the Ray cluster at {address} (RAY_ADDRESS) has {shown[0]}, and this process has "
            f"{shown[1]}; install the same here, or submit the training with `ray job submit`, "
            "which runs it with the cluster's"
        )


def _check_node(address: str, nodes: list[Any]) -> None:
    """Raise where this machine has no node of the cluster: a driver needs one beside it."""
    there = {node.node_manager_address for node in nodes}
    own = {address.address for found in psutil.net_if_addrs().values() for address in found}
    if there and not there & own:
        shown = ", ".join(sorted(there))
        raise UserError(
            f"this machine has no node of the Ray cluster at {address} (RAY_ADDRESS), which has "
            f"nodes at {shown}; join it with `ray start --address={address}`, or submit the "
            "training with `ray job submit`"
        )
