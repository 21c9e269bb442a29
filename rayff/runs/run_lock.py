"""The lock of a run directory: one process at a time writes what is in it.

    new folder -1-> .lock: who holds it -2-> the run ... -3-> no .lock

(1) The kernel's lock on the file (flock) decides between processes of one host, and of several
where the file system has such locks; a killed process loses it at once. (2) Other hosts may not
see it: the holder touches the file every few seconds, and they take over one that stays untouched.
(3) A folder that was made for the lock goes with it where nothing else was left there.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

import psutil

from rayff.config.errors import UserError

LOCK = ".lock"
TOUCH_S = 5.0
SILENCE_S = 30.0
"""After which a holder on another host counts as dead."""
_CLOCKS_S = 120.0
"""How far the clocks of hosts and file servers may be apart."""
_AT_ONCE_S = 0.2
_RETRIES = 3
"""A reader that tests the lock holds it for a moment."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    host: str
    boot: str
    """Differs from kernel to kernel, which containers with names of their own may share."""
    since: str

    @classmethod
    def this(cls) -> Holder:
        """Return this process."""
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(pid=os.getpid(), host=socket.gethostname(), boot=boot_id(), since=now)

    @classmethod
    def read(cls, file: int) -> Holder | None:
        """Return who wrote a lock; None where nobody did, or is about to."""
        try:
            return cls(**json.loads(os.pread(file, 10_000, 0)))
        except (ValueError, TypeError):
            return None

    def is_dead(self, *, has_lock: bool) -> bool:
        """Return whether the process is known to have ended.

        Args:
            has_lock: whether this process got the kernel's lock, which one of this kernel would
                still hold.
        """
        me = Holder.this()
        if has_lock:
            return self.host == me.host or (self.boot != "" and self.boot == me.boot)
        return self.host == me.host and not psutil.pid_exists(self.pid)


@functools.cache
def boot_id() -> str:
    """Return the name of the running kernel, or nothing where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@contextmanager
def locked(
    folder: Path,
    *,
    new_name: bool = False,
    on_wait: Callable[[str], object] = lambda message: None,
) -> Iterator[Path]:
    """Hold the lock of a run directory, which is made if it is not there; yield its path.

    Args:
        folder: the run directory.
        new_name: whether a folder that is there already is left alone, and FOLDER-2, FOLDER-3 and
            so on is made instead.
        on_wait: called with a sentence when the lock of another host takes a while.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    folder, made = _make(folder, new_name)
    try:
        file = _acquire(folder, on_wait)
        ended = threading.Event()
        touching = threading.Thread(target=_touch, args=(file, ended), daemon=True)
        touching.start()
        try:
            yield folder
        finally:
            ended.set()
            touching.join()
            with suppress(OSError):
                if Holder.read(file) == _read(folder):
                    (folder / LOCK).unlink()
            os.close(file)
    finally:
        for each in made:
            with suppress(OSError):  # it holds something
                each.rmdir()


def is_held(folder: Path) -> bool:
    """Return whether a process is at work in a run directory."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        got = _try_lock(file, fcntl.LOCK_SH)
        holder = Holder.read(file)
        if got is False or holder is None:
            return got is False
        age_s = abs(time.time() - os.fstat(file).st_mtime)
        return not holder.is_dead(has_lock=bool(got)) and age_s < SILENCE_S + _CLOCKS_S
    finally:
        os.close(file)


def _make(folder: Path, new_name: bool) -> tuple[Path, list[Path]]:
    """Make the folder; return its path, and what was made, the deepest first."""
    names = (f"{folder.name}-{number}" if number > 1 else folder.name for number in count(1))
    try:
        parents = [parent for parent in folder.parents if not parent.exists()]
        while True:
            target = folder.with_name(next(names)) if new_name else folder
            with suppress(FileExistsError):
                target.mkdir(parents=True)
                return target, [target, *parents]
            if not new_name and target.is_dir():
                return target, parents
            if not new_name:
                raise UserError(f"--run-dir {folder} is a file; name a folder")
    except OSError as error:
        raise _unwritable(folder, error) from error


def _acquire(folder: Path, on_wait: Callable[[str], object]) -> int:
    """Return the open file of the lock, once this process holds it."""
    path = folder / LOCK
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            got = _try_lock(file, fcntl.LOCK_EX)
            holder = Holder.read(file)
            if got is False or (holder and not holder.is_dead(has_lock=bool(got))):
                _await_silence(folder, file, holder, on_wait, is_sure=got is False)
            me = Holder.this()
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(dataclasses.asdict(me)).encode(), 0)
            if got is None:  # another process may do the same now
                time.sleep(_AT_ONCE_S)
            if _is_there(file, path) and Holder.read(file) == me:
                return file
        except OSError as error:
            os.close(file)
            raise _unwritable(folder, error) from error
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # its holder has removed it in between, or another process was faster


def _try_lock(file: int, kind: int) -> bool | None:
    """Take the kernel's lock; return whether it was free, None where there are no such locks."""
    for attempt in range(_RETRIES):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if attempt < _RETRIES - 1:
                time.sleep(0.05)
        except OSError:
            return None
    return False


def _await_silence(
    folder: Path,
    file: int,
    holder: Holder | None,
    on_wait: Callable[[str], object],
    *,
    is_sure: bool,
) -> None:
    """Wait until a holder that another host cannot ask counts as dead.

    Raises:
        UserError: it is alive.
    """
    who = f"process {holder.pid} on {holder.host}" if holder else "another process"
    if not is_sure and holder is not None and holder.host != socket.gethostname():
        on_wait(f"waiting {SILENCE_S:.0f} s to see whether {who} still works in {folder}")
        before, deadline = os.fstat(file).st_mtime_ns, time.monotonic() + SILENCE_S
        while time.monotonic() < deadline:
            time.sleep(min(1.0, SILENCE_S))
            with open(folder / LOCK) as fresh:  # a network file system looks again when it opens
                if os.fstat(fresh.fileno()).st_mtime_ns != before:
                    break
        else:
            on_wait(f"{who} has ended without a word: going on in {folder}")
            return
    since = f" since {holder.since}" if holder else ""
    raise UserError(
        f"--run-dir {folder} is in use{since} by {who}: wait for it, stop it, or name another "
        "folder"
    )


def _touch(file: int, ended: threading.Event) -> None:
    while not ended.wait(TOUCH_S):
        with suppress(OSError):
            os.utime(file)


def _read(folder: Path) -> Holder | None:
    with (folder / LOCK).open("rb") as file:
        return Holder.read(file.fileno())


def _is_there(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"--run-dir {folder} cannot be written: {error.strerror}; name another folder"
    )
