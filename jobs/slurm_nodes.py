"""What jobs/slurm.sh asks Python for: free ports, and to wait for the Ray nodes of the job."""

import os
import socket
import sys
import time

PATIENCE_S = 180.0
SAY_EVERY_S = 10.0


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("", 0))
    return [each.getsockname()[1] for each in sockets]


def await_nodes(names: list[str]) -> None:
    """Wait until Ray has a node of each name; exit with a message that names those it lacks."""
    began = said = time.monotonic()
    while missing := [name for name in names if name not in joined()]:
        now = time.monotonic()
        if now - began > PATIENCE_S:
            sys.exit(f"error: no Ray on {', '.join(missing)} after {PATIENCE_S:g} s; see above")
        if now - said > SAY_EVERY_S:
            print(f"waiting for Ray on {', '.join(missing)}", flush=True)
            said = now
        time.sleep(0.5)


def joined() -> set[str]:
    """Return the names of the nodes that have joined the cluster at RAY_ADDRESS."""
    import ray  # not where only ports are asked for

    if not ray.is_initialized():
        host, _, port = os.environ["RAY_ADDRESS"].rpartition(":")
        try:
            socket.create_connection((host, int(port)), 1).close()
            ray.init(logging_level="error", log_to_driver=False)
        except OSError:
            return set()
    return {node["NodeName"] for node in ray.nodes() if node["Alive"]}


if __name__ == "__main__":
    if sys.argv[1] == "ports":
        print(*free_ports(int(sys.argv[2])))
    else:
        await_nodes(sys.argv[2:])
