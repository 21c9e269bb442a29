"""Checkpoints: whole or not there, and nothing else is read."""

import copy
import dataclasses
import errno
import hashlib
import json
import math
import os
import pickle  # noqa: TID251 - strangers' files are made with it
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from rayff.spec import Architecture, UserError, architecture
from rayff.training import checkpoint as module
from rayff.training.checkpoint import Checkpoint, CheckpointStore, Progress
from tests.training.failing_disk import INTERRUPTIONS, interrupted, small_disk

NETWORK = architecture("tinycnn", num_classes=4, image_channels=3, width=4)
SEED = 11
PROGRESS = Progress(epoch=2, batch=3, images=40, loss_sums=(1.25, 0.1, 1e-300, 3.0))


def make_store(
    directory: Path, network: Architecture = NETWORK, *, seed: int = SEED, keep: int = 2
) -> CheckpointStore:
    return CheckpointStore(directory, network, seed=seed, keep=keep)


def make_checkpoint(
    step: int, progress: Progress = PROGRESS, network: Architecture = NETWORK, size: int = 64
) -> Checkpoint:
    """Return a checkpoint whose layers hold numbers that tell step and layer."""
    states = {
        layer.index: np.frombuffer(
            save({"weight": torch.full((size,), float(100 * step + layer.index))}), dtype=np.uint8
        )
        for layer in network.layers
    }
    return Checkpoint(step=step, progress=progress, states=states)


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    return (
        one is not None
        and (one.step, one.progress) == (other.step, other.progress)
        and {index: state.tobytes() for index, state in one.states.items()}
        == {index: state.tobytes() for index, state in other.states.items()}
    )


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


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

    def test_other_files_beside_them_are_left_alone(self, folder: Path) -> None:
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

    def test_the_same_step_further_on_is_told_so(self, folder: Path) -> None:
        """A run that stops in the evaluation of an epoch goes on with the same layers."""
        store = make_store(folder)
        store.write(make_checkpoint(6, Progress(epoch=1, batch=3, images=5, loss_sums=(1.0,) * 4)))
        store.write(make_checkpoint(6, Progress(epoch=2)))
        latest = store.read_latest()
        assert latest is not None
        assert latest.progress == Progress(epoch=2)
        assert names(folder) == ["step-00000006"]


class TestTheManifest:
    def test_it_knows_layers_by_their_global_number_and_nothing_of_stages(
        self, folder: Path
    ) -> None:
        checkpoint = make_checkpoint(12)
        path = make_store(folder).write(checkpoint)
        manifest = json.loads((path / "manifest.json").read_text())
        files = [f"layer-{index:03d}.safetensors" for index in range(4)]
        assert names(path) == [*files, "manifest.json"]
        assert manifest == {
            "format": 1,
            "step": 12,
            "seed": SEED,
            "architecture": json.loads(json.dumps(NETWORK.to_dict())),
            "progress": {
                "epoch": 2,
                "batch": 3,
                "images": 40,
                "loss_sums": [1.25, 0.1, 1e-300, 3.0],
            },
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

    def test_it_is_the_last_file_to_be_written(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written = []

        def write(path: Path, data: bytes | memoryview) -> None:
            written.append(path.name)
            assert not (folder / "step-00000012").exists()
            path.write_bytes(data)

        monkeypatch.setattr(module, "write_durably", write)
        make_store(folder).write(make_checkpoint(12))
        layers = [f"layer-{index:03d}.safetensors" for index in range(4)]
        assert written == [*layers, "manifest.json"]

    def test_the_disk_has_the_files_before_the_folder_has_its_name(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[tuple[int, bool]] = []
        target = folder / "step-00000012"

        def fsync(descriptor: int) -> None:
            synced.append((os.fstat(descriptor).st_ino, target.exists()))

        monkeypatch.setattr(os, "fsync", fsync)
        make_store(folder).write(make_checkpoint(12))
        written = [(target / name).stat().st_ino for name in names(target)]
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
            from rayff.training import checkpoint as module, files
            from tests.training.test_checkpoint import make_checkpoint, make_store

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


class TestDamage:
    """Each is said in one sentence that names the file and what to do."""

    @pytest.fixture
    def store(self, folder: Path) -> CheckpointStore:
        store = make_store(folder)
        store.write(make_checkpoint(1))
        store.write(make_checkpoint(2))
        return store

    def refused(self, store: CheckpointStore, *, match: str, file: str, remedy: str) -> str:
        with pytest.raises(UserError, match=match) as caught:
            store.read_latest()
        message = str(caught.value)
        assert str(store.directory / "step-00000002" / file) in message
        assert remedy in message
        assert "\n" not in message
        return message

    DAMAGE: tuple[tuple[str, Callable[[Path], object], str], ...] = (
        ("truncated", lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged"),
        ("empty", lambda path: path.write_bytes(b""), "is damaged"),
        ("longer", lambda path: path.write_bytes(path.read_bytes() + b"\0"), "is damaged"),
        ("missing", lambda path: path.unlink(), "cannot be read"),
        ("a folder", lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    )

    @pytest.mark.parametrize(("kind", "damage", "match"), DAMAGE, ids=[d[0] for d in DAMAGE])
    @pytest.mark.parametrize("layer", [0, 3])
    def test_a_layer_file(
        self,
        store: CheckpointStore,
        kind: str,
        damage: Callable[[Path], object],
        match: str,
        layer: int,
    ) -> None:
        name = f"layer-{layer:03d}.safetensors"
        damage(store.list()[-1] / name)
        older, newer = store.list()
        remedy = f"delete {newer} to resume from {older.name}"
        self.refused(store, match=match, file=name, remedy=remedy)
        assert same(store.read(older), make_checkpoint(1))

    @pytest.mark.parametrize("position", [0, 9, 150, -1])
    def test_a_flipped_byte(self, store: CheckpointStore, position: int) -> None:
        path = store.list()[-1] / "layer-001.safetensors"
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)
        self.refused(store, match="is damaged", file=path.name, remedy="to resume from step-00000")

    @pytest.mark.parametrize(
        "content",
        [
            None,
            b"",
            b"no JSON",
            b"\xff\xfe\x00",
            b"[" * 100_000,
            b"null",
            b"[]",
            b"3",
            b'"text"',
            b"{}",
            b'{"format": 1}',
        ],
        ids=lambda content: "missing" if content is None else repr(content[:20]),
    )
    def test_the_manifest(self, store: CheckpointStore, content: bytes | None) -> None:
        path = store.list()[-1] / "manifest.json"
        path.unlink() if content is None else path.write_bytes(content)
        self.refused(
            store, match="manifest", file=path.name, remedy="to resume from step-00000001"
        )

    def test_where_there_is_no_older_one_the_run_can_start_again(self, folder: Path) -> None:
        store = make_store(folder)
        newest = store.write(make_checkpoint(2))
        (newest / "layer-001.safetensors").unlink()
        remedy = f"delete {newest} to start the run again"
        self.refused(store, match="cannot be", file="layer-001.safetensors", remedy=remedy)

    def test_another_format(self, store: CheckpointStore) -> None:
        self.change(store, lambda manifest: manifest.update(format=2))
        self.refused(
            store, match="format 2.*reads 1", file="manifest.json", remedy="resume with the"
        )

    @pytest.mark.parametrize("key", ["format", "step", "seed", "architecture", "progress"])
    def test_a_missing_key(self, store: CheckpointStore, key: str) -> None:
        self.change(store, lambda manifest: manifest.pop(key))
        self.refused(store, match=f"{key}", file="manifest.json", remedy="to resume from")

    def test_a_missing_layer(self, store: CheckpointStore) -> None:
        self.change(store, lambda manifest: manifest["layers"].pop("2"))
        self.refused(store, match="layer 2", file="manifest.json", remedy="to resume from")

    WRONG: tuple[tuple[tuple[str, ...], Any], ...] = (
        (("step",), "12"),
        (("step",), 2.5),
        (("step",), None),
        (("step",), True),
        (("step",), float("inf")),
        (("step",), float("nan")),
        (("step",), -1),
        (("step",), 7),
        (("seed",), "x"),
        (("seed",), float("inf")),
        (("architecture",), []),
        (("architecture",), 3),
        (("progress",), []),
        (("progress", "epoch"), -1),
        (("progress", "epoch"), 1.5),
        (("progress", "epoch"), False),
        (("progress", "batch"), "3"),
        (("progress", "batch"), 0),
        (("progress", "images"), float("inf")),
        (("progress", "loss_sums"), 3),
        (("progress", "loss_sums"), [1.0]),
        (("progress", "loss_sums"), ["1", "2", "3", "4"]),
        (("progress", "loss_sums"), "1234"),
        (("progress", "loss_sums"), [1.0, 2.0, 3.0, float("nan")]),
        (("progress", "loss_sums"), [1.0, 2.0, 3.0, 10**400]),
        (("layers",), []),
        (("layers",), {"zero": {}}),
        (("layers", "0"), None),
        (("layers", "0"), ["a", "b"]),
        (("layers", "0", "file"), "\0"),
        (("layers", "0", "file"), "\ud800"),
        (("layers", "0", "file"), "x" * 5000),
        (("layers", "0", "file"), None),
        (("layers", "0", "sha256"), None),
    )

    @pytest.mark.parametrize(("place", "value"), WRONG, ids=lambda x: repr(x)[:40])
    def test_a_wrong_value(
        self, store: CheckpointStore, place: tuple[str, ...], value: object
    ) -> None:
        def put(manifest: dict[str, Any]) -> None:
            for key in place[:-1]:
                manifest = manifest[key]
            manifest[place[-1]] = value

        self.change(store, put)
        self.refused(store, match="2", file="", remedy="to resume from step-00000001")

    def test_the_layers_of_an_architecture_of_wrong_type(self, store: CheckpointStore) -> None:
        for value in (3, None, "abc"):
            self.change(store, lambda m, v=value: m["architecture"].update(layers=v))
            with pytest.raises(UserError, match="no manifest of a checkpoint"):
                store.read_latest()

    @pytest.mark.parametrize(
        "name",
        ["../outside", "../step-00000001/layer-000.safetensors", "a/b", "", ".", "..", "OUTSIDE"],
    )
    def test_a_file_outside_the_checkpoint_is_not_read(
        self, store: CheckpointStore, tmp_path: Path, name: str
    ) -> None:
        outside = store.directory / "outside"
        outside.write_bytes((store.list()[-1] / "layer-000.safetensors").read_bytes())
        name = str(outside) if name == "OUTSIDE" else name
        self.change(store, lambda manifest: manifest["layers"]["0"].update(file=name))
        self.refused(
            store,
            match="not a file of the checkpoint itself",
            file="manifest.json",
            remedy="to resume from step-00000001",
        )

    @staticmethod
    def change(store: CheckpointStore, how: Callable[[dict[str, Any]], object]) -> None:
        path = store.list()[-1] / "manifest.json"
        manifest = json.loads(path.read_text())
        how(manifest)
        path.write_text(json.dumps(manifest))


class MarkerOnLoad:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.mkdir, (self.marker,)


class TestAPickle:
    def test_in_place_of_a_layer_is_not_loaded(self, folder: Path, tmp_path: Path) -> None:
        store = make_store(folder)
        path = store.write(make_checkpoint(1))
        marker = tmp_path / "executed"
        data = pickle.dumps(MarkerOnLoad(marker))
        (path / "layer-001.safetensors").write_bytes(data)
        with pytest.raises(UserError, match=r"layer-001.safetensors is damaged"):
            store.read_latest()
        # also where the manifest vouches for it
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["layers"]["1"]["sha256"] = hashlib.sha256(data).hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=r"layer-001.safetensors is no safetensors file"):
            store.read_latest()
        assert not marker.exists()
        pickle.loads(data)
        assert marker.exists()  # so it would have shown

    def test_in_place_of_the_manifest_is_not_loaded(self, folder: Path, tmp_path: Path) -> None:
        store = make_store(folder)
        path = store.write(make_checkpoint(1))
        (path / "manifest.json").write_bytes(pickle.dumps(MarkerOnLoad(tmp_path / "executed")))
        with pytest.raises(UserError, match="no manifest"):
            store.read_latest()
        assert not (tmp_path / "executed").exists()


class TestAnotherRun:
    """The checkpoint is as it should be: the advice must not be to delete it."""

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


def places(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a JSON tree but the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        found.append((*prefix, key))
        if isinstance(value, dict | list):
            found += places(value, (*prefix, key))
    return found


WRONG_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(max_value=-1),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)


class TestMutatedManifests:
    """Any mutation of the JSON gives the same checkpoint or a UserError, and nothing else."""

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, tmp_path_factory: pytest.TempPathFactory) -> CheckpointStore:
        store = make_store(tmp_path_factory.mktemp("mutated"))
        store.write(make_checkpoint(12))
        return store

    @pytest.fixture(scope="class")
    @classmethod
    def manifest(cls, store: CheckpointStore) -> Any:
        return json.loads((store.list()[0] / "manifest.json").read_text())

    @settings(max_examples=400, deadline=None, derandomize=True, database=None)
    @given(data=st.data())
    def test_a_value_of_another_kind_or_none_at_all(
        self, store: CheckpointStore, manifest: Any, data: st.DataObject
    ) -> None:
        mutated = copy.deepcopy(manifest)
        place = data.draw(st.sampled_from(places(manifest)), label="place")
        parent = mutated
        for key in place[:-1]:
            parent = parent[key]
        if data.draw(st.booleans(), label="delete"):
            del parent[place[-1]]
        else:
            value = data.draw(WRONG_VALUES, label="value")
            if type(parent[place[-1]]) is float and type(value) in (int, float):
                value = data.draw(st.sampled_from([math.inf, -math.inf, math.nan, 10**400]))
            parent[place[-1]] = value
        self.check(store, json.dumps(mutated).encode())

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(data=st.data())
    def test_a_file_that_is_cut_off_or_overwritten(
        self, store: CheckpointStore, manifest: Any, data: st.DataObject
    ) -> None:
        text = json.dumps(manifest).encode()
        begin = data.draw(st.integers(0, len(text)), label="begin")
        length = data.draw(st.integers(0, 30), label="length")
        middle = data.draw(st.sampled_from([b"", b"\xff", b"}", b"{", b'"', b"null"]))
        self.check(store, text[:begin] + middle + text[begin + length :], exact=False)

    def check(self, store: CheckpointStore, text: bytes, exact: bool = True) -> None:
        (store.list()[0] / "manifest.json").write_bytes(text)
        try:
            read = store.read_latest()
        except UserError:
            return
        assert read is not None
        if exact:
            assert same(read, make_checkpoint(12))
        for index, state in read.states.items():
            assert load(state.tobytes())["weight"][0] == 1200 + index
