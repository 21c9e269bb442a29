"""Checkpoints: whole or not there."""

import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rayff.config.errors import UserError
from rayff.learning.readout import Readouts
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from rayff.runs import checkpoint as module
from rayff.runs.checkpoint import Progress
from tests.runs.checkpoints import NETWORK, SEED, make_checkpoint, make_store, names, same
from tests.runs.failing_disk import INTERRUPTIONS, interrupted, small_disk
from tests.runs.readouts import FUSION, READOUTS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


class TestRoundTrip:
    def test_what_is_written_is_read(self, folder: Path) -> None:
        store = make_store(folder)
        path = store.write(make_checkpoint(12))
        assert path == folder / "step-00000012"
        assert store.list() == [path]
        assert same(store.read_latest(), make_checkpoint(12))
        assert same(store.read(path), make_checkpoint(12))

    def test_the_newest_is_read_whatever_its_number_of_digits(self, folder: Path) -> None:
        store = make_store(folder, keep=9)
        for step in (99_999_999, 7, 100_000_000, 12):
            store.write(make_checkpoint(step))
        assert [path.name for path in store.list()] == [
            *("step-00000007", "step-00000012", "step-99999999", "step-100000000")
        ]
        assert same(store.read_latest(), make_checkpoint(100_000_000))

    def test_there_is_none_at_first(self, folder: Path) -> None:
        assert make_store(folder).read_latest() is None
        assert make_store(folder).list() == []
        assert not folder.exists()

    def test_other_files_in_the_folder_stay(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "notes.txt").write_text("mine")
        (folder / "step-12").mkdir()
        (folder / "step-00000012.old").mkdir()
        store = make_store(folder, keep=1)
        for step in (1, 2):
            store.write(make_checkpoint(step))
        assert names(folder) == ["notes.txt", "step-00000002", "step-00000012.old", "step-12"]

    def test_the_same_step_is_not_written_twice(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store(folder)
        path = store.write(make_checkpoint(5))
        monkeypatch.setattr(module, "write_durably", interrupted(0, OSError(errno.EIO, "I/O")))
        assert store.write(make_checkpoint(5)) == path

    def test_the_same_step_gets_the_position_further_on(self, folder: Path) -> None:
        """A run that stops in the evaluation of an epoch goes on with the same layers."""
        store = make_store(folder)
        store.write(make_checkpoint(6, Progress(epoch=1, batch=3, images=5, loss_sums=(1.0,) * 4)))
        store.write(make_checkpoint(6, Progress(epoch=2)))
        latest = store.read_latest()
        assert latest is not None
        assert latest.progress == Progress(epoch=2)
        assert names(folder) == ["step-00000006"]


class TestReadouts:
    """Window, temperatures and fusion of the model that belongs to a checkpoint."""

    def found(self, folder: Path) -> Readouts | None:
        latest = make_store(folder).read_latest()
        assert latest is not None
        return latest.readouts

    def test_what_is_written_is_read(self, folder: Path) -> None:
        checkpoint = dataclasses.replace(make_checkpoint(12), readouts=READOUTS)
        make_store(folder).write(checkpoint)
        found = self.found(folder)
        assert found is not None
        assert (found.window, found.temperatures) == ((1, 2), READOUTS.temperatures)
        assert found.fusion is not None
        assert found.fusion.weight.tobytes() == FUSION.weight.tobytes()

    def test_the_same_step_gets_those_of_a_later_evaluation(self, folder: Path) -> None:
        store = make_store(folder)
        for readouts in (None, Readouts(window=(0, 3)), READOUTS):
            store.write(dataclasses.replace(make_checkpoint(6), readouts=readouts))
        found = self.found(folder)
        assert found is not None
        assert found.temperatures == READOUTS.temperatures

    def test_a_checkpoint_may_have_none(self, folder: Path) -> None:
        path = make_store(folder).write(make_checkpoint(6))
        assert self.found(folder) is None
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["readouts"], manifest["sha256"]
        (path / "manifest.json").write_text(json.dumps(manifest))
        assert self.found(folder) is None


class TestTheManifest:
    def test_it_has_layers_by_their_global_number_and_no_stages(self, folder: Path) -> None:
        checkpoint = make_checkpoint(12)
        path = make_store(folder).write(checkpoint)
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["sha256"]
        files = [f"layer-{index:03d}.safetensors" for index in range(4)]
        assert names(path) == [*files, "manifest.json"]
        assert manifest == {
            "format": 1,
            "data": None,
            "step": 12,
            "seed": SEED,
            "architecture": json.loads(json.dumps(NETWORK.to_dict())),
            "progress": {
                "epoch": 2,
                "batch": 3,
                "images": 40,
                "loss_sums": [1.25, 0.1, 1e-300, 3.0],
            },
            "readouts": None,
            "layers": {
                str(index): {
                    "file": files[index],
                    "sha256": hashlib.sha256(checkpoint.states[index].tobytes()).hexdigest(),
                }
                for index in range(4)
            },
        }
        assert "stage" not in (path / "manifest.json").read_text()
        for index, name in enumerate(files):
            assert (path / name).read_bytes() == checkpoint.states[index].tobytes()

    def test_the_disk_has_the_files_before_the_folder_has_its_name(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[tuple[int, bool]] = []
        target = folder / "step-00000012"

        def fsync(descriptor: int) -> None:
            synced.append((os.fstat(descriptor).st_ino, target.exists()))

        monkeypatch.setattr(os, "fsync", fsync)
        make_store(folder).write(make_checkpoint(12))
        written = [(target / name).stat().st_ino for name in names(target)]  # manifest.json last
        assert synced == [*((node, False) for node in written), (folder.stat().st_ino, True)]


class TestAWriteThatIsCutShort:
    @pytest.mark.parametrize("number", range(5))  # four layers and the manifest
    @pytest.mark.parametrize("error", INTERRUPTIONS, ids=lambda error: type(error).__name__)
    def test_leaves_nothing_and_the_one_before_it(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException
    ) -> None:
        store = make_store(folder, keep=1)
        store.write(make_checkpoint(1))
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_durably", interrupted(number, error))
            with pytest.raises(type(error)):
                store.write(make_checkpoint(2))
        assert names(folder) == ["step-00000001"]
        assert same(store.read_latest(), make_checkpoint(1))
        store.write(make_checkpoint(2))
        assert names(folder) == ["step-00000002"]
        assert same(store.read_latest(), make_checkpoint(2))

    def test_there_are_five_files_to_write(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "write_durably", interrupted(5, KeyboardInterrupt()))
        make_store(folder).write(make_checkpoint(1))

    def test_nor_does_a_rename_that_fails(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store(folder)
        store.write(make_checkpoint(1))

        def rename(self: Path, target: Path) -> Path:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(OSError, match="Input/output"):
            store.write(make_checkpoint(2))
        assert names(folder) == ["step-00000001"]

    def test_on_a_disk_that_is_full(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "256k") as disk:
            store = make_store(disk / "checkpoints")
            size = 10_000  # four layers of 40 kB: one checkpoint has room, two have not
            store.write(make_checkpoint(1, size=size))
            with pytest.raises(OSError, match="No space left") as caught:
                store.write(make_checkpoint(2, size=size))
            assert caught.value.errno == errno.ENOSPC
            assert names(disk / "checkpoints") == ["step-00000001"]
            assert same(store.read_latest(), make_checkpoint(1, size=size))

    def test_by_the_death_of_the_process(self, folder: Path) -> None:
        store = make_store(folder)
        store.write(make_checkpoint(1))
        script = textwrap.dedent(
            f"""
            import os, signal
            from pathlib import Path
            from rayff.runs import checkpoint as module, files
            from tests.runs.checkpoints import make_checkpoint, make_store

            def write(path, data):
                if path.name == "layer-002.safetensors":
                    with path.open("wb") as file:
                        file.write(bytes(data)[:100])
                        file.flush()
                        os.kill(os.getpid(), signal.SIGKILL)
                files.write_durably(path, data)

            module.write_durably = write
            make_store(Path({str(folder)!r})).write(make_checkpoint(2))
            """
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert names(folder) == [".step-00000002.partial", "step-00000001"]
        assert len(names(folder / ".step-00000002.partial")) == 3

        assert store.list() == [folder / "step-00000001"]
        assert same(store.read_latest(), make_checkpoint(1))
        store.write(make_checkpoint(3))  # not of the step that was cut short
        assert names(folder) == ["step-00000001", "step-00000003"]


class TestKeeping:
    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_only_the_oldest_go(self, folder: Path, keep: int) -> None:
        store = make_store(folder, keep=keep)
        for step in range(1, 6):
            store.write(make_checkpoint(step))
            kept = range(max(1, step - keep + 1), step + 1)
            assert names(folder) == [f"step-{number:08d}" for number in kept]
            assert same(store.read_latest(), make_checkpoint(step))

    def test_none_goes_before_the_new_one_is_there(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = make_store(folder, keep=1)
        store.write(make_checkpoint(1))
        remove = module.shutil.rmtree

        def rmtree(path: Path, ignore_errors: bool = False) -> None:
            if path.name == "step-00000001":
                assert same(store.read_latest(), make_checkpoint(2))
            remove(path, ignore_errors=ignore_errors)

        monkeypatch.setattr(module.shutil, "rmtree", rmtree)
        store.write(make_checkpoint(2))
        assert names(folder) == ["step-00000002"]


class TestAnotherRun:
    """The checkpoint is whole: the remedy must not be to delete it."""

    @pytest.mark.parametrize(
        ("other", "named"),
        [
            (architecture("tinycnn", num_classes=4, image_channels=3, width=8), "tinycnn"),
            (architecture("vgg", num_classes=4, image_channels=3, width=4), "vgg"),
            (architecture("tinycnn", num_classes=2, image_channels=3, width=4), "and 2"),
            (architecture("tinycnn", num_classes=4, image_channels=1, width=4), "tinycnn"),
            (dataclasses.replace(NETWORK, layers=NETWORK.layers[:3]), "with 3"),
        ],
        ids=["width", "arch", "classes", "channels", "length"],
    )
    def test_of_another_architecture(self, folder: Path, other: Architecture, named: str) -> None:
        for step in (1, 2):
            path = make_store(folder).write(make_checkpoint(step))
        with pytest.raises(UserError, match="another architecture") as caught:
            make_store(folder, other).read_latest()
        assert str(path) in str(caught.value)
        assert named in str(caught.value)
        assert "resume with the architecture and task it was made with" in str(caught.value)
        assert "delete" not in str(caught.value)

    def test_of_another_seed(self, folder: Path) -> None:
        for step in (1, 2):
            path = make_store(folder).write(make_checkpoint(step))
        with pytest.raises(UserError, match="trained with --seed 11: use the same") as caught:
            make_store(folder, seed=12).read_latest()
        assert str(path) in str(caught.value)
        assert "delete" not in str(caught.value)
