"""The lock of a run directory, between real processes, and hosts that cannot see each other's."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rayff import TrainConfig, Trainer
from rayff.engine import preparation
from rayff.engine.claim import claimed
from rayff.runs import run_lock
from rayff.runs.run_lock import LOCK, is_held, locked
from tests.helpers.mistakes import refused
from tests.helpers.runs import AtChunk, train_locally
from tests.helpers.tiny_task import tiny_config

HOLD = """
import sys
from pathlib import Path
from rayff.runs.run_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its input is closed."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def write_lock(folder: Path, **holder: Any) -> Path:
    """Leave a lock as a process of another host would."""
    folder.mkdir(exist_ok=True)
    other = {"pid": 7, "host": "elsewhere", "boot": "other", "since": "2026-11-28 03:00:00+00:00"}
    (folder / LOCK).write_text(json.dumps({**other, **holder}))
    return folder / LOCK


class TestAnotherProcess:
    def test_of_this_host_is_named_until_it_has_ended(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        with another_process(folder) as process:
            assert is_held(folder)
            name = f"in use since .* by process {process.pid} on .*: wait for it, stop it, or name"
            with refused(name, folder), locked(folder):
                pass
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert (folder / LOCK).exists(), "a killed process leaves it"
            assert not is_held(folder)
            with locked(folder):
                assert is_held(folder)
        assert list(folder.iterdir()) == []

    def test_that_still_touches_its_lock_elsewhere_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_lock(tmp_path / "run")
        monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: os.utime(path))
        waited: list[str] = []
        with refused("in use since 2026.* by process 7 on elsewhere"):
            with locked(tmp_path / "run", on_wait=waited.append):
                pass
        assert len(waited) == 1
        assert is_held(tmp_path / "run")

    def test_that_fell_silent_elsewhere_is_taken_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_lock(tmp_path / "run")
        monkeypatch.setattr(run_lock, "SILENCE_S", 0.01)
        waited: list[str] = []
        with locked(tmp_path / "run", on_wait=waited.append):
            assert json.loads(path.read_text())["pid"] == os.getpid()
        assert "process 7 on elsewhere has ended without a word" in waited[1]
        os.utime(write_lock(tmp_path / "run"), (0, 0))
        assert not is_held(tmp_path / "run")

    def test_of_a_container_on_this_kernel_is_dead_without_its_lock(self, tmp_path: Path) -> None:
        write_lock(tmp_path / "run", boot=run_lock.boot_id())
        with locked(tmp_path / "run", on_wait=lambda message: pytest.fail(message)):
            pass

    def test_where_files_have_no_locks_is_known_by_its_number(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def flock(file: int, kind: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", flock)
        with locked(tmp_path / "run"):
            assert is_held(tmp_path / "run")
            with refused(f"by process {os.getpid()}"), locked(tmp_path / "run"):
                pass
        write_lock(tmp_path / "run", host=run_lock.Holder.this().host, pid=2**22 + 1)
        assert not is_held(tmp_path / "run")
        with locked(tmp_path / "run"):
            pass


class TestTheFolder:
    def test_that_was_made_for_nothing_is_removed(self, tmp_path: Path) -> None:
        with locked(tmp_path / "a" / "b") as path:
            assert (path / LOCK).exists()
        assert list(tmp_path.iterdir()) == []
        with locked(tmp_path / "a" / "b") as path:
            (path / "config.json").touch()
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["config.json"]

    def test_with_a_new_name_is_no_others(self, tmp_path: Path) -> None:
        with locked(tmp_path / "run", new_name=True) as first:
            with locked(tmp_path / "run", new_name=True) as second:
                assert (first.name, second.name) == ("run", "run-2")

    def test_that_cannot_be_made_is_a_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for folder, match in (
            (tmp_path / "file", "is a file; name a folder"),
            (tmp_path / "file" / "run", "cannot be written: Not a directory; name another"),
            (tmp_path / ("x" * 300), "cannot be written: File name too long; name another"),
        ):
            with refused(match, tmp_path), locked(folder):
                pass


class TestATraining:
    def test_holds_its_directory_and_another_is_refused_before_it_reads_data(
        self, tiny_task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = tiny_config(tiny_task, tmp_path / "run", epochs=1)
        tried: list[bool] = []

        def try_twice() -> None:
            monkeypatch.setattr(preparation, "load_task", lambda options: pytest.fail("read"))
            for resume in (False, True):
                with refused(f"in use .* by process {os.getpid()}"):
                    Trainer(config, backend="local", quiet=True).fit(resume=resume)
                tried.append(resume)

        train_locally(config, AtChunk(1, try_twice))
        assert tried == [False, True]
        assert not (tmp_path / "run" / LOCK).exists()

    def test_that_cannot_write_says_so_before_it_reads_data(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(preparation, "load_task", lambda options: pytest.fail("read"))
        (tmp_path / "file").touch()
        with refused("cannot be written: Not a directory", tmp_path):
            Trainer(TrainConfig(run_dir=str(tmp_path / "file" / "run")), backend="local").fit()

    def test_without_a_name_gets_one_that_no_other_has(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("time.strftime", lambda form: "20261128-030000")
        with claimed(TrainConfig(), resume=False) as first:
            with claimed(TrainConfig(), resume=False) as second:
                assert first.run_dir == "runs/tinycnn-digits-20261128-030000"
                assert second.run_dir == f"{first.run_dir}-2"
        assert list(tmp_path.iterdir()) == []
