"""The connection to Ray: joins a cluster, or starts a private instance."""

from __future__ import annotations

import glob
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import psutil
import ray

from rayff.config.activity import activity
from rayff.config.environment import set_ray_defaults
from rayff.config.errors import UserError
from rayff.config.text import printable
from rayff.distributed import last_word
from rayff.distributed.address import check_address
from rayff.distributed.watch import ClusterWatch, parts_of_ray
from rayff.runs.run_directory import resume_command

TIMED_OUT = "timed out during startup"
"""What Ray says where a node needs longer than the 30 s that it gives itself: a busy machine, or
files that are read over a network for the first time."""
T = TypeVar("T")


class Session:
    """A connection to Ray, which ends the process with a sentence where Ray ends.

    Attributes:
        on_lost: called before, in a thread of its own, with what has happened; returns what is
            said of it. The thread of the run may be stuck in a call of Ray.
    """

    def __init__(self, helper: subprocess.Popen[bytes] | None = None) -> None:
        self.on_lost: Callable[[str], str] = lambda cause: f"{cause}; {self.how_to_go_on()}"
        self._helper = helper
        self._continuation: dict[str, str] = {}

    def tell(self, **facts: Any) -> None:
        """Tell rayff.distributed.last_word a fact."""
        if self._helper is not None and self._helper.stdin is not None:
            with suppress(OSError):  # it is gone
                self._helper.stdin.write(json.dumps(facts).encode() + b"\n")

    def begin(self, folder: Path, checkpoint: str) -> None:
        """Take note of what has begun.

        Args:
            folder: of the run or search.
            checkpoint: pattern of the files in it without which it cannot be continued.
        """
        pattern = f"{glob.escape(str(folder))}/{checkpoint}"
        self._continuation = {"command": resume_command(folder), "checkpoint": pattern}
        self.tell(**self._continuation)

    def how_to_go_on(self) -> str:
        """Return how what has begun goes on after its end."""
        found = self._continuation
        return last_word.how_to_go_on(found.get("command"), found.get("checkpoint"))

    def end_process(self, cause: str) -> None:
        """Say what has happened and end this process, which Ray would do without a word."""
        text = cause
        with suppress(Exception):
            text = self.on_lost(cause)
        print(f"error: {printable(text)}", file=sys.stderr, flush=True)
        self.tell(said=True)
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(1)


@contextmanager
def ray_session() -> Iterator[Session]:
    """Connect to Ray; a local instance that is started here is stopped at the end.

    RAY_ADDRESS names the cluster to join, as inside `ray job submit`; without it a private
    instance starts, without a dashboard, in a temporary folder that is removed with it. A
    connection that is already there is used and kept.

    Raises:
        UserError: the cluster cannot be joined from here.
    """
    if ray.is_initialized():
        session = Session()
        with ClusterWatch(parts_of_ray(), session.end_process):
            yield session
        return
    address = os.environ.get("RAY_ADDRESS") or "local"
    set_ray_defaults()
    with ExitStack() as stack:
        session = Session(stack.enter_context(_helper()))
        handled = threading.current_thread() is threading.main_thread()  # Python's rule
        take_sigterm = stack.enter_context(_sigterm()) if handled else lambda: None
        if address == "local":
            with activity("starting Ray"), _sighup_blocked():
                _start(session)
        else:
            with activity(f"connecting to Ray at {address}"):
                check_address(address)
                _connect(address)
        take_sigterm()
        stack.callback(ray.shutdown)
        parts = parts_of_ray()
        if address != "local":
            session.tell(node=parts[0].address)
        with ClusterWatch(parts, session.end_process):
            yield session


@contextmanager
def _sigterm() -> Iterator[Callable[[], object]]:
    """Leave with the exit code of SIGTERM, at which Ray's handlers dump memory or exit with 15.

    Yields:
        What to call when Ray has set its handlers.
    """
    received = []

    def leave(signum: int, frame: FrameType | None) -> NoReturn:
        received.append(signum)
        sys.exit(128 + signum)

    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    try:
        yield lambda: signal.signal(signal.SIGTERM, leave)
    except SystemExit as end:  # a call of Ray changes its code
        if received or end.code == signal.SIGTERM:
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _sighup_blocked() -> Iterator[None]:
    """Start processes that a closed terminal does not end; it sends SIGHUP to all."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _helper() -> Iterator[subprocess.Popen[bytes]]:
    """Be a process that has the last word, in a session of its own, where no Ctrl-C reaches it."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", last_word.__file__],
        stdin=subprocess.PIPE,
        bufsize=0,  # what it did not take is no error when the pipe is closed
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            Session(process).tell(said=True)


def _start(session: Session) -> None:
    """Start an instance in a folder of its own, which others cannot enter."""
    try:
        folder = tempfile.mkdtemp(prefix="rayff-", dir=os.environ.get("RAY_TMPDIR"))
    except OSError as error:
        raise UserError(
            f"a local Ray instance needs a temporary folder ({error}); set RAY_TMPDIR to a folder "
            "that can be written"
        ) from error
    session.tell(folder=folder)

    def start() -> None:
        for process in psutil.Process().children(recursive=True):  # of an attempt before
            with suppress(psutil.Error):
                if any(folder in word for word in process.cmdline()):
                    process.kill()
        _connect("local", include_dashboard=False, _temp_dir=f"{folder}/ray")

    patiently(start)


def patiently(start: Callable[[], T]) -> T:
    """Return what starts a node of Ray; it is called once more where Ray lost its patience."""
    try:
        return start()
    except Exception as error:
        if TIMED_OUT not in str(error):
            raise
    return start()


def _connect(address: str, **options: Any) -> None:
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # Ray raises bare ones where a node takes too long to start
        raise UserError(_folder_problem(error) or _no_connection(error, address)) from error


def _no_connection(error: Exception, address: str) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if address == "local":
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
