"""The copy of a run in a storage: local folders, fsspec, and a real S3 server with faults."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from rayff import TrainConfig
from rayff.data.locations import file_system
from rayff.engine.preparation import prepare
from rayff.runs.storage import Storage
from rayff.train import read_flags
from tests.helpers.mistakes import refused
from tests.helpers.runs import (
    RecordingCallback,
    StopAfter,
    layer_files,
    timeless,
    train_locally,
)
from tests.helpers.s3 import S3
from tests.helpers.tiny_task import BATCHES, tiny_config

LAST = 2 * BATCHES


def stored(task: str, run_dir: Path, storage_path: str, **changes: Any) -> TrainConfig:
    return tiny_config(task, run_dir, storage_path=storage_path, **changes)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class TestAFolder:
    def test_has_all_of_the_run(self, tiny_task: str, tmp_path: Path) -> None:
        train_locally(
            stored(tiny_task, tmp_path / "run", str(tmp_path / "kept"), keep_checkpoints=1)
        )
        copy, own = files_of(tmp_path / "kept" / "run"), files_of(tmp_path / "run")
        log = own.pop("log.txt")
        assert log.startswith(copy.pop("log.txt")), "its summary comes behind the last transfer"
        assert copy == own
        assert b'"reason": "complete"' in copy["run.json"]
        assert {"config.json", "metrics.csv", "model.safetensors"} <= set(copy)
        assert [name for name in copy if "step-00000003" in name] == []

    @pytest.mark.parametrize("lost", ["all", "checkpoint"])
    def test_gives_back_what_was_lost(self, tiny_task: str, tmp_path: Path, lost: str) -> None:
        run = stored(tiny_task, tmp_path / "run", str(tmp_path / "kept"), keep_best=True)
        records = train_locally(run).metrics
        expected = layer_files(run.run_dir, LAST)
        gone = tmp_path / "run"
        best = files_of(gone / "best")
        shutil.rmtree(gone if lost == "all" else gone / "checkpoints" / f"step-{LAST:08d}")
        again = train_locally(run, resume=True).metrics
        assert layer_files(run.run_dir, LAST) == expected
        assert files_of(gone / "best") == best, "another model would take its place"
        assert timeless(again) == timeless(records)

    def test_that_is_older_changes_nothing(self, tiny_task: str, tmp_path: Path) -> None:
        run = stored(tiny_task, tmp_path / "run", str(tmp_path / "kept"))
        train_locally(run)
        shutil.rmtree(tmp_path / "kept" / "run" / "checkpoints" / f"step-{LAST:08d}")
        assert not Storage(tmp_path / "run", str(tmp_path / "kept")).pull()

    def test_that_has_a_run_of_the_name_is_not_overwritten(
        self, tiny_task: str, tmp_path: Path
    ) -> None:
        run = stored(tiny_task, tmp_path / "run", str(tmp_path / "kept"), epochs=1)
        train_locally(run)
        shutil.rmtree(tmp_path / "run")
        with refused("holds a run already: add --resume"):
            train_locally(run)

    @pytest.mark.parametrize("resume", [False, True])
    def test_that_is_a_file_is_refused_at_the_start(
        self, tiny_task: str, tmp_path: Path, resume: bool
    ) -> None:
        kept = tmp_path / "README.md"
        kept.write_text("text")
        run = stored(tiny_task, tmp_path / "run", str(kept))
        with refused(f"^--storage-path {kept} is a file; name a folder$"):
            prepare(run, resume=resume)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["s3://", "s3:///folder", "gs://", "gcs://?region=x"])
def test_a_uri_without_a_bucket_is_refused(path: str) -> None:
    with refused(r"^--storage-path .* names no bucket; use .*://bucket/"):
        file_system(path, "--storage-path")


def test_fsspec_serves_what_pyarrow_does_not_know(tiny_task: str, tmp_path: Path) -> None:
    run = stored(tiny_task, tmp_path / "run", "memory://runs", epochs=1)
    train_locally(run)
    expected = layer_files(run.run_dir, BATCHES)
    shutil.rmtree(tmp_path / "run")
    assert Storage(tmp_path / "run", "memory://runs").pull()
    assert layer_files(run.run_dir, BATCHES) == expected


class TestS3:
    def test_a_run_whose_machine_is_lost_goes_on_elsewhere(
        self, tiny_task: str, tmp_path: Path, s3: S3
    ) -> None:
        whole = stored(tiny_task, tmp_path / "whole", str(tmp_path / "kept"))
        train_locally(whole)
        run = stored(tiny_task, tmp_path / "run", s3.uri)
        train_locally(run, StopAfter(7))  # the second batch of the second epoch
        shutil.rmtree(tmp_path / "run")
        flags = ["--resume", "--run-dir", str(tmp_path / "run"), "--storage-path", s3.uri]
        assert read_flags(flags).epochs == 2, "the options are those of the run"
        assert train_locally(run, resume=True).complete
        assert layer_files(run.run_dir, LAST) == layer_files(whole.run_dir, LAST)

    @pytest.mark.parametrize("broken", ["layer-002.safetensors", "manifest.json", "config.json"])
    def test_a_fault_in_an_upload_leaves_the_checkpoint_before_it(
        self, tiny_task: str, tmp_path: Path, s3: S3, broken: str
    ) -> None:
        """After the first checkpoint, each upload of one file breaks off."""
        run = stored(tiny_task, tmp_path / "run", s3.uri, keep_checkpoints=1)
        hit = []

        def fails(method: str, path: str) -> bool:
            breaks = method == "PUT" and path.endswith(broken)
            hit.append(path) if breaks else None
            return breaks

        train_locally(run, StopAfter(5))  # at the end of the first epoch
        s3.fails = fails
        recording = RecordingCallback()
        train_locally(run, recording, resume=True)
        assert hit, "the server broke off an upload"
        warned = [line for line in recording.lines if "the copy in s3://" in line]
        assert len(warned) == 1
        assert "is behind" in warned[0]
        s3.fails = lambda method, path: False
        elsewhere = Storage(tmp_path / "elsewhere" / "run", s3.uri)
        assert elsewhere.pull()
        found = [path.name for path in (elsewhere.run_dir / "checkpoints").iterdir()]
        assert found == ["step-00000006" if broken == "config.json" else "step-00000003"]
        Storage(tmp_path / "run", s3.uri).push(keep=1)
        assert elsewhere.pull() == (broken != "config.json")
        assert layer_files(elsewhere.run_dir, LAST) == layer_files(run.run_dir, LAST)

    def test_that_is_gone_is_a_sentence(self, tiny_task: str, tmp_path: Path, s3: S3) -> None:
        s3.close()
        with refused("cannot be reached"):
            train_locally(stored(tiny_task, tmp_path / "run", s3.uri))
        assert not (tmp_path / "run").exists()


class TestMistakes:
    def test_an_unknown_scheme(self, tiny_task: str, tmp_path: Path) -> None:
        with refused("--storage-path nowhere://x: Protocol not known"):
            train_locally(stored(tiny_task, tmp_path / "run", "nowhere://x"))

    def test_a_key_in_the_uri_is_refused(self, tiny_task: str, tmp_path: Path) -> None:
        with refused("through the environment") as caught:
            train_locally(stored(tiny_task, tmp_path / "run", "s3://key:secret@bucket/x"))
        assert "secret@" not in str(caught.value)
