"""The connection to Ray: joins a cluster, or starts a local instance."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from rayff.config.environment import set_ray_defaults
from rayff.config.errors import UserError

CONNECT_TIMEOUT_S = 10.0


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to Ray; a local instance that is started here is stopped at the end.

    RAY_ADDRESS names the cluster to join, as inside `ray job submit`; without it a local
    instance starts, without a dashboard. A connection that is already there is used and kept.

    Raises:
        UserError: the cluster does not answer.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    set_ray_defaults()
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        if address:
            _knock(address)
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray instance"
        raise UserError(
            f"{where} did not answer: {str(error).strip().splitlines()[0]}; check RAY_ADDRESS, "
            "that the head node runs this version of Ray, and that RAY_AUTH_MODE and the token "
            "are those of the cluster"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise an OSError where nothing listens; ray.init would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
