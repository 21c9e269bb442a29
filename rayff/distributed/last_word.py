"""A program beside a driver: what is left to do when Ray has ended that. Standard library only.

Ray's C++ core ends a driver at once, without a word and with exit code 1, where the node that it
is connected to shuts down (`ray stop`). This program reads facts about the driver from standard
input, a JSON object a line, until the driver has gone. Then it says what has happened, unless the
driver has, and removes the temporary folder of a private Ray.
"""

from __future__ import annotations

import errno
import json
import shutil
import signal
import socket
import sys
import time
from glob import glob
from pathlib import Path
from typing import Any

CLEAN_UP_S = 10.0
"""How long processes that end may go on writing to the folder."""


def main() -> None:
    """Wait for the end of the driver and act.

    Whoever stops the driver (a job server, Slurm) sends SIGTERM to its children as well.
    """
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    facts: dict[str, Any] = dict.fromkeys(("said", "command", "checkpoint", "folder", "node"))
    for line in sys.stdin:
        facts |= json.loads(line)
    if not facts["said"]:
        shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live view hides the cursor
        text = f"{cause(facts['node'])}; {how_to_go_on(facts['command'], facts['checkpoint'])}"
        print(f"{shown}error: {text}", file=sys.stderr, flush=True)
    if facts["folder"] is not None:
        remove(Path(facts["folder"]))


def cause(node: list[Any] | None) -> str:
    """Return why a driver has ended without a word; `node` is the address of its raylet.

    The raylet of a private Ray ends with the driver.
    """
    if node is not None and answers(node[0], node[1]):
        return "this process was ended from outside, as the system does where memory runs out"
    return (
        "the Ray node of this process has ended, and this process with it, as after `ray stop` or "
        "a kill"
    )


def how_to_go_on(command: str | None, checkpoint: str | None) -> str:
    """Return how a run or search goes on.

    Args:
        command: which continues it; None where it had not begun.
        checkpoint: pattern of the files without which it cannot.
    """
    if command is None or checkpoint is None:
        return "start it again"
    if not glob(checkpoint):
        return "there is no checkpoint yet: start it again"
    return f"its newest checkpoint is on disk, continue with: {command}"


def answers(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Return whether something listens there, as far as this process can ask."""
    try:
        socket.create_connection((host, port), timeout_s).close()
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)  # too many open files here
    return True


def remove(folder: Path) -> None:
    """Remove a folder that ending processes still write to."""
    deadline = time.monotonic() + CLEAN_UP_S
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
