"""run.json and log.txt: what a run was, and how each of its sessions ended."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rayff.config.errors import UserError
from rayff.runs.record import Session, git_state, read_sessions
from tests.helpers.mistakes import refused
from tests.helpers.runs import AtChunk, KillAfter, Killed, StopAfter, train_locally
from tests.helpers.tiny_task import BATCHES, tiny_config


def ends(run_dir: Path) -> list[str | None]:
    return [session.reason for session in read_sessions(run_dir)]


def fail() -> None:
    raise UserError("the disk\nis gone")


def test_a_run_has_a_session_for_its_start_and_each_resumption(
    tiny_task: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_task, tmp_path / "run", tags="a, b,a", notes="first try")
    interrupt = AtChunk(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(UserError):
        train_locally(config, AtChunk(BATCHES + 4, fail))
    train_locally(config, interrupt, resume=True)
    train_locally(config, StopAfter(1), resume=True)
    with pytest.raises(Killed):
        train_locally(config, KillAfter(1), resume=True)
    train_locally(config, resume=True)
    assert ends(tmp_path / "run") == [
        "failed: the disk is gone",
        "stopped by SIGTERM",
        "stopped by a callback",
        "failed: Killed",
        "complete",
    ]
    session = read_sessions(tmp_path / "run")[-1]
    assert session.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert sum(session.devices.values()) == 1
    assert session.end is not None
    assert session.start <= session.end
    assert session.command.startswith(sys.executable)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["tags"], saved["notes"]) == ("a, b,a", "first try")
    assert config.tag_names == ("a", "b")

    log = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in log)
    text = "\n".join(line[21:] for line in log)
    assert "error: the disk\n" in text
    assert "warning: SIGTERM: stopping" in text
    assert f"continue with: rayff train --run-dir {tmp_path}/run --resume --backend local" in text
    assert text.count("resumed from the checkpoint of step") == 4
    assert re.search(r"^all 2 epochs done, after ", text, re.MULTILINE)


def test_a_damaged_record_does_not_keep_a_run_from_going_on(
    tiny_task: str, tmp_path: Path
) -> None:
    config = tiny_config(tiny_task, tmp_path / "run", epochs=1)
    train_locally(config, StopAfter(1))
    record = tmp_path / "run" / "run.json"
    for damage in ('{"sessions": [{}]}', '{"sessions": [{"start": "now"}]}', "[", "[]", "{}"):
        record.write_text(damage)
        with refused("run.json is not"):
            read_sessions(tmp_path / "run")
    train_locally(config, resume=True)
    assert ends(tmp_path / "run") == ["complete"]
    assert "its earlier sessions are lost" in (tmp_path / "run" / "log.txt").read_text()


def test_the_commit_is_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() == (None, None)
    (tmp_path / "net.py").write_text("width = 1\n")
    author = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for command in (("init", "-q"), ("add", "net.py"), (*author, "commit", "-qm", "first")):
        subprocess.run(["git", *command], check=True)
    commit, dirty = git_state()
    assert re.fullmatch("[0-9a-f]{40}", commit or "")
    assert dirty is False
    (tmp_path / "net.py").write_text("width = 2\n")
    assert git_state() == (commit, True)
    session = Session.begin(nodes=["n1", "n1"], devices=["gpu", "gpu"])
    assert (session.git_commit, session.git_dirty) == (commit, True)
    assert (session.nodes, session.devices) == (["n1"], {"gpu": 2})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() == (None, None)
