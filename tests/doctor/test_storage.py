"""Folders that cannot be written, full disks, storages that fail, data that is missing."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.doctor import storage
from tests.helpers.s3 import S3
from tests.helpers.tiny_task import write_tiny_task


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """No user, not even root, can write below it."""
    path = tmp_path / "file"
    path.write_text("")
    return path


class TestFolders:
    def set_free(self, free: int, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = SimpleNamespace(total=100_000_000_000, free=free)
        monkeypatch.setattr(psutil, "disk_usage", lambda path: usage)

    def test_cache(self, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "cache"))
        assert storage.cache().state == "ok"
        monkeypatch.setenv("RAYFF_CACHE_DIR", str(file / "cache"))
        assert storage.cache().state == "slow"

    def test_run_directory_is_not_created(self, tmp_path: Path) -> None:
        assert storage.run_dir(str(tmp_path / "runs" / "first")).state == "ok"
        assert list(tmp_path.iterdir()) == []

    def test_run_directory_that_cannot_be_written(self, file: Path) -> None:
        assert storage.run_dir(str(file / "runs")).state == "fail"

    def test_run_directory_without_room(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.set_free(2 * storage.CHECKPOINT_BYTES, monkeypatch)
        assert storage.run_dir(str(tmp_path)).state == "fail"

    @pytest.mark.parametrize(("free", "state"), [(6 * 10**9, "ok"), (4 * 10**9, "fail")])
    def test_disk_on_which_ray_creates_no_objects(
        self, free: int, state: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.set_free(free, monkeypatch)
        assert storage.ray_temp_dir().state == state


class TestStorage:
    def test_folder_is_left_empty(self, tmp_path: Path) -> None:
        result = storage.storage(str(tmp_path / "copies"))
        assert result is not None
        assert result.state == "ok"
        assert list((tmp_path / "copies").iterdir()) == []

    def test_key_in_the_uri_is_not_repeated(self) -> None:
        with pytest.raises(UserError) as caught:
            storage.storage("s3://me:secret@bucket/runs")
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize(
        ("method", "step"), [("PUT", "written"), ("GET", "read back"), ("DELETE", "deleted")]
    )
    def test_s3_that_forbids_one_thing(self, method: str, step: str, s3: S3) -> None:
        s3.fails = lambda asked, path: asked == method
        result = storage.storage(s3.uri)
        assert result is not None
        assert result.state == "fail"
        assert f"a file cannot be {step} (" in result.text
        s3.fails = lambda asked, path: False
        bucket = s3.uri.removeprefix("s3://").partition("/")[0]
        objects = s3.client.list_objects(Bucket=bucket).get("Contents", [])
        assert any(".rayff-" in found["Key"] for found in objects) == (method == "DELETE")


def test_data_is_counted(tmp_path: Path) -> None:
    task = write_tiny_task(tmp_path / "tiny", num_train=64)
    result = storage.data(TrainConfig(task=task, image_size=16))
    assert result.text == (
        "tiny: 64 train, 20 valid, 30 test images of 32x32 pixels in colour, now 16x16; 4 classes "
        "with 16 training images each"
    )
