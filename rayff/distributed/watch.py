"""Watches the parts of Ray without which a driver cannot go on: the head, and its own node.

Where the head's GCS has gone, Ray's calls wait, and Ray ends the process after a minute; where the
driver's raylet has, at its next contact with the object store. Nothing can be cleaned up by then.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from rayff.distributed.last_word import answers

EVERY_S = 0.5
NODE_PATIENCE_S = 1.0
HEAD_PATIENCE_S = 6.0
"""A head whose state is kept elsewhere may come back: whoever keeps it says for how long it may be
away in Ray's own RAY_gcs_rpc_server_reconnect_timeout_s."""


@dataclass(frozen=True)
class Part:
    """A part of Ray: its name in messages, address, and how long it may be away."""

    name: str
    address: tuple[str, int]
    patience_s: float


def parts_of_ray() -> list[Part]:
    """Return what this driver needs: the head, and the node that it is connected to."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    own = next(node for node in found if node["NodeID"] == context.get_node_id())
    patience_s = float(
        os.environ.get("RAY_gcs_rpc_server_reconnect_timeout_s", HEAD_PATIENCE_S)  # noqa: SIM112
    )
    node = own["NodeManagerAddress"], own["NodeManagerPort"]
    return [
        Part("Ray node of this process", node, NODE_PATIENCE_S),
        Part("head of Ray", (host.strip("[]"), int(port)), patience_s),
    ]


class ClusterWatch:
    """While entered, a thread looks after parts of Ray.

    Args:
        parts: of Ray.
        on_lost: called in the thread with the sentence about a part that is lost.
    """

    def __init__(self, parts: list[Part], on_lost: Callable[[str], None]) -> None:
        self.parts = parts
        self.on_lost = on_lost
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="cluster watch", daemon=True)

    def __enter__(self) -> ClusterWatch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        seen = {part: time.monotonic() for part in self.parts}
        while not self._over.wait(EVERY_S):
            for part in self.parts:
                now = time.monotonic()
                if answers(*part.address):
                    seen[part] = now
                elif now - seen[part] > part.patience_s and not self._over.is_set():
                    host, port = part.address
                    self.on_lost(
                        f"the {part.name} at {host}:{port} has ended, as after `ray stop` or a "
                        "crash"
                    )
                    return
