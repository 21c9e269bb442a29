"""Folders that cannot be written, full disks, storages that are none, data that is not there."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rayff.doctor import storage as places
from rayff.doctor.check import examine
from tests.runs.test_storage import S3
from tests.tasks import write_tiny_task


@pytest.fixture
def a_file(tmp_path: Path) -> Path:
    """Nothing can be written below it, not even by root."""
    file = tmp_path / "file"
    file.write_text("")
    return file


class TestCache:
    def test_is_written_and_left_as_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "cache"))
        assert places.cache().state == "ok"
        assert list((tmp_path / "cache").iterdir()) == []

    def test_cannot_be_written(self, a_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYFF_CACHE_DIR", str(a_file / "cache"))
        result = places.cache()
        assert result.state == "slow"
        assert "RAYFF_CACHE_DIR" in str(result.remedy)


class TestDisks:
    def have(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        usage = SimpleNamespace(total=100 * 2**30, free=free)
        monkeypatch.setattr(psutil, "disk_usage", lambda path: usage)

    def test_a_run_directory_is_not_made(self, tmp_path: Path) -> None:
        result = places.run_disk(tmp_path / "runs" / "first")
        assert result.state == "ok"
        assert str(tmp_path) in result.found
        assert list(tmp_path.iterdir()) == []

    def test_a_disk_without_room_for_checkpoints(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.have(monkeypatch, 2 * places.checkpoint_bytes("resnet"))
        assert places.run_disk(tmp_path).state == "fails"

    def test_a_place_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(dir: Path) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(places.tempfile, "TemporaryFile", refuse)
        result = places.run_disk(tmp_path)
        assert result.state == "fails"
        assert "Permission denied" in result.found
        assert "--run-dir" in str(result.remedy)

    def test_a_disk_so_full_that_ray_stops(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.have(monkeypatch, 6 * 2**30)
        assert places.ray_disk().state == "ok"
        self.have(monkeypatch, 4 * 2**30)
        assert places.ray_disk().state == "fails"


class TestStorage:
    def test_a_folder_is_written_read_and_left_empty(self, tmp_path: Path) -> None:
        result = places.storage(str(tmp_path / "copies"))
        assert result.state == "ok"
        assert "1 MiB written, read and deleted" in result.found
        assert list((tmp_path / "copies").iterdir()) == []

    def test_a_file_system_of_fsspec(self) -> None:
        assert places.storage("memory://copies").state == "ok"

    def test_one_that_nobody_knows(self) -> None:
        result = examine(lambda: places.storage("nowhere://bucket/runs"))
        assert result.state == "fails"
        assert "nowhere" in result.found
        assert "s3://bucket/folder" in str(result.remedy)

    def test_one_that_cannot_be_written(self, a_file: Path) -> None:
        result = places.storage(str(a_file / "copies"))
        assert result.state == "fails"
        assert "cannot be written" in result.found

    def test_a_key_in_the_uri_is_not_repeated(self) -> None:
        result = examine(lambda: places.storage("s3://me:secret@bucket/runs"))
        assert result.state == "fails"
        assert "secret" not in f"{result.found} {result.remedy}"


class TestS3:
    @pytest.fixture
    def s3(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = S3()
        yield server
        server.close()

    def test_that_allows_everything(self, s3: S3) -> None:
        assert places.storage(s3.uri).state == "ok"

    @pytest.mark.parametrize(
        ("method", "step"), [("PUT", "written"), ("GET", "read"), ("DELETE", "deleted")]
    )
    def test_that_forbids_one_thing(self, method: str, step: str, s3: S3) -> None:
        s3.fails = lambda asked, path: asked == method
        result = places.storage(s3.uri)
        assert result.state == "fails"
        assert f"a file cannot be {step} (" in result.found
        assert "ACCESS_DENIED" in result.found
        s3.fails = lambda asked, path: False
        bucket = s3.uri.removeprefix("s3://").partition("/")[0]
        left = [
            found["Key"] for found in s3.client.list_objects(Bucket=bucket).get("Contents", [])
        ]
        assert any(".rayff-" in key for key in left) == (method == "DELETE")

    def test_without_the_bucket(self, s3: S3) -> None:
        result = places.storage(s3.uri.replace("bucket-", "other-"))
        assert result.state == "fails"
        assert "not found" in result.found


class TestData:
    def test_is_counted(self, tmp_path: Path) -> None:
        result = places.data(write_tiny_task(tmp_path / "tiny", num_train=64), None)
        assert result.state == "ok"
        assert result.found.startswith("tiny: ")

    def test_is_not_there(self, tmp_path: Path) -> None:
        result = places.data("mnist", tmp_path)
        assert result.state == "fails"
        assert "'mnist'" in result.found

    def test_of_a_task_that_nobody_knows(self) -> None:
        assert "did you mean 'mnist'" in places.data("mnits", None).found
