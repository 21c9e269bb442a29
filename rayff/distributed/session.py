"""The connection to Ray: joins a cluster, or starts a local instance."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
        raise UserError(_folder_problem(error) or _no_connection(error, address)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _no_connection(error: Exception, address: str | None) -> str:
    said = str(error).strip().splitlines()[0]
    if not address:
        return f"a local Ray instance did not start: {said}; rayff doctor checks this machine"
    return (
        f"the Ray cluster at {address} did not answer: {said}; check RAY_ADDRESS, that the head "
        "node runs this version of Ray, and that RAY_AUTH_MODE and the token are those of the "
        "cluster"
    )


def _folder_problem(error: Exception) -> str | None:
    """Return what is wrong with a folder that Ray needs on this machine, and the remedy."""
    base = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    denied = Path(getattr(error, "filename", None) or "")
    if "home directory" in str(error):
        return (
            "Ray keeps a token in the home folder, and this user has none: set HOME to a folder "
            "that can be written"
        )
    if "AF_UNIX" in str(error):
        return (
            f"Ray's sockets in {base} would have names of more than 107 characters: set "
            "RAY_TMPDIR to a folder with a shorter name, such as /tmp"
        )
    if denied.is_relative_to(base):
        folder = next(each for each in (denied, *denied.parents) if os.path.exists(each))
        return (
            f"Ray cannot write {folder}, which belongs to {_owner(folder)}: set RAY_TMPDIR to a "
            "folder of yours"
        )
    if ".ray" in denied.parts:
        return (
            f"Ray keeps a token in the home folder and cannot write {denied}: set HOME to a "
            "folder that can be written"
        )
    return None


def _owner(folder: Path) -> str:
    try:
        return folder.owner()
    except KeyError:  # not in /etc/passwd
        return f"user {folder.stat().st_uid}"


def _knock(address: str) -> None:
    """Raise an OSError where nothing listens; ray.init would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
