"""The record of a run, `run.json`: with what, where and when it was trained, and how it ended.

A run has a session for its start and one for each resumption. A session without an end is under
way, or its process was killed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rayff.config.errors import UserError
from rayff.runs.files import write_atomically
from rayff.runs.run_directory import read_json

RECORD = "run.json"
LOG = "log.txt"
"""The lines that the run printed, with their times."""
COMPLETE, STOPPED, FAILED = "complete", "stopped", "failed"
"""How a session ends; the first word of `Session.reason`."""
PACKAGES = ("rayff", "torch", "torchvision", "ray", "numpy", "pyarrow", "triton")
_GIT_TIMEOUT_S = 5.0
_RAY_WORKER = "default_worker.py"


@dataclass(frozen=True, kw_only=True)
class Session:
    """A process that trained the run, from its start or from a checkpoint on."""

    start: str
    """With the time zone."""
    end: str | None = None
    reason: str | None = None
    """complete, stopped by ..., or failed: ...; None while it goes on, or where it was killed."""
    command: str = ""
    """The command line; empty in a worker of Ray, as of a trial."""
    folder: str = ""
    """Its working directory."""
    host: str = ""
    """Where the driver ran."""
    nodes: list[str] = field(default_factory=list)
    """Where the stages ran, if there were several nodes."""
    devices: dict[str, int] = field(default_factory=dict)
    """Number of stages, replicas or workers on each kind of device."""
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None
    """Of the repository that the working directory belongs to, if any."""
    git_dirty: bool | None = None
    """Whether tracked files differed from the commit."""

    @classmethod
    def begin(cls, *, nodes: Sequence[str], devices: Sequence[str]) -> Session:
        """Return a session of this process that begins now.

        Args:
            nodes: of the stages.
            devices: name of each stage's, replica's or worker's device.
        """
        commit, dirty = git_state()
        return cls(
            start=now(),
            command=command_line(),
            folder=os.getcwd(),
            host=socket.gethostname(),
            nodes=list(dict.fromkeys(nodes)),
            devices=dict(Counter(devices)),
            versions=versions(),
            git_commit=commit,
            git_dirty=dirty,
        )


class RunRecord:
    """Writes a session to the run.json of a run directory, behind those before it.

    Args:
        directory: exists.
        session: begins.
        on_warning: called with what could not be read or written; no such failure ends the run.
    """

    def __init__(
        self, directory: Path, session: Session, on_warning: Callable[[str], None]
    ) -> None:
        self.path = directory / RECORD
        self.session = session
        self.on_warning = on_warning
        self._before: list[Session] = []
        try:
            self._before = read_sessions(directory)
        except UserError as error:
            on_warning(f"{error}: its earlier sessions are lost")
        self._write()

    def end(self, reason: str) -> None:
        """Write how the session ended; only the first call counts."""
        if self.session.end is None:
            self.session = dataclasses.replace(self.session, end=now(), reason=reason)
            self._write()

    def _write(self) -> None:
        sessions = [dataclasses.asdict(session) for session in (*self._before, self.session)]
        try:
            data = json.dumps({"sessions": sessions}, indent=2)
            write_atomically(self.path, data.encode() + b"\n")
        except OSError as error:
            self.on_warning(f"{RECORD} could not be written ({error.strerror})")


def read_sessions(directory: Path) -> list[Session]:
    """Return the sessions of a run, the oldest first; none of a run without a record.

    Raises:
        UserError: the record is damaged.
    """
    path = directory / RECORD
    if not path.exists():
        return []
    data = read_json(path)
    try:
        sessions = [_session(entry) for entry in data["sessions"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not the record of a run: {error!r}") from error
    return sessions


def _session(entry: dict[str, Any]) -> Session:
    """Return a session; fields that this version does not know are left out."""
    known = {each.name for each in dataclasses.fields(Session)}
    session = Session(**{name: value for name, value in entry.items() if name in known})
    for moment in (session.start, session.end):
        if moment is not None:
            datetime.fromisoformat(moment)
    if not isinstance(session.reason, (str, type(None))):
        raise TypeError(f"reason {session.reason!r}")
    return session


def now() -> str:
    """Return the time as ISO 8601 has it, with the time zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def command_line() -> str:
    """Return the command line of this process; nothing in a worker of Ray, whose is Ray's own."""
    return "" if Path(sys.argv[0]).name == _RAY_WORKER else shlex.join(sys.orig_argv)


def versions() -> dict[str, str]:
    """Return the versions of Python and the packages that decide what a run computes."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # rayff too, in a source tree that is not installed
            continue
    return found


def git_state() -> tuple[str | None, bool | None]:
    """Return commit and dirtiness of the working directory's repository; None without one."""
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_TIMEOUT_S,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None, None
    lines = done.stdout.splitlines()
    commits = [line.split()[-1] for line in lines if line.startswith("# branch.oid")]
    if done.returncode != 0 or not commits or commits[0] == "(initial)":
        return None, None
    return commits[0], any(not line.startswith("#") for line in lines)
