"""Real Ray nodes, as `ray start --block` makes them, each with ports and a session of its own."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from rayff.distributed.session import patiently

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PATIENCE_S = 150.0


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of nodes, drivers and clients: with a token, and this package."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    usual = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **usual,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@contextmanager
def short_folder() -> Iterator[str]:
    """Be a folder for --temp-dir: the names of Ray's sockets in it may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="rayff-", ignore_cleanup_errors=True) as folder:
        yield folder


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


@contextmanager
def ray_node(
    log: Path,
    environment: dict[str, str],
    *flags: str,
    prefix: Sequence[str] = (),
) -> Iterator[psutil.Process]:
    """Be a node inside, which has started; all its processes are gone at the end.

    Args:
        log: file for what it prints.
        environment: of the node.
        flags: of `ray start`.
        prefix: of the command, such as one that enters a namespace.
    """
    names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    ports = [f"--{name}={port}" for name, port in zip(names, free_ports(3), strict=True)]
    command = [*prefix, str(BIN / "ray"), "start", "--block", *ports, *flags]
    process = patiently(lambda: _started(log, command, environment))
    try:
        yield process
    finally:
        family = [process, *process.children(recursive=True)] if process.is_running() else []
        process.send_signal(signal.SIGTERM)
        left = ended(family, PATIENCE_S / 2)
        for each in left:
            each.kill()
        process.wait(PATIENCE_S)
        assert not ended(family, PATIENCE_S / 2)


def _started(log: Path, command: list[str], environment: dict[str, str]) -> psutil.Process:
    """Return the process of a node that has started."""
    with log.open("w") as output:
        process = psutil.Popen(
            command,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
        )
    wait_until(
        lambda: "Ray runtime started" in log.read_text() or process.poll() is not None,
        PATIENCE_S,
        "a node",
    )
    assert process.poll() is None, log.read_text()
    return process


def ended(processes: Sequence[psutil.Process], patience_s: float) -> list[psutil.Process]:
    """Return those that are still there after a while; orphans that nobody waits for are not."""

    def alive() -> list[psutil.Process]:
        return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    wait_until(lambda: not alive(), patience_s, "", must=False)
    return alive()


def wait_until(
    true: Callable[[], bool], patience_s: float, what: str, *, must: bool = True
) -> None:
    """Wait for something; an error names what did not come."""
    deadline = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > deadline:
            assert not must, f"waited {patience_s:g} s for {what}"
            return
        time.sleep(0.1)
