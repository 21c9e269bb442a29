"""Damaged checkpoints: each is refused with a remedy, and nothing in them is run or followed.

Damage of every other kind is tested by tests/fuzz/test_checkpoints.py.
"""

import dataclasses
import hashlib
import json
import os
import pickle  # noqa: TID251 - an attacker's files are made with it
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayff.runs.checkpoint import CheckpointStore
from tests.helpers.mistakes import refused
from tests.helpers.pickles import MarkerOnLoad
from tests.runs.checkpoints import make_checkpoint, make_store, same
from tests.runs.readouts import READOUTS

LAYER = "layer-001.safetensors"
MANIFEST = "manifest.json"


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """Two checkpoints, of which the newer one is damaged by the tests."""
    store = make_store(tmp_path / "run" / "checkpoints")
    store.write(make_checkpoint(1))
    store.write(make_checkpoint(2))
    return store


def newest(store: CheckpointStore) -> Path:
    return store.list()[-1]


def assert_refused(store: CheckpointStore, match: str, file: str) -> None:
    """Expect a sentence that names the file and offers the checkpoint before."""
    with refused(match) as caught:
        store.read_latest()
    assert str(newest(store) / file) in str(caught.value)
    assert f"delete {newest(store)} to resume from step-00000001" in str(caught.value)
    assert same(store.read(store.list()[0]), make_checkpoint(1))


def change_manifest(store: CheckpointStore, change: Callable[[dict[str, Any]], object]) -> None:
    path = newest(store) / MANIFEST
    manifest = json.loads(path.read_text())
    manifest.pop("sha256", None)  # older ones have none
    change(manifest)
    path.write_text(json.dumps(manifest))


def flip(path: Path, at: int = 150) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


class TestALayerFile:
    @pytest.mark.parametrize(
        ("damage", "match"),
        [
            (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged: its .* bytes"),
            (flip, "is damaged: its .* bytes"),
            (lambda path: path.unlink(), "cannot be read: No such file"),
        ],
        ids=["truncated", "flipped", "missing"],
    )
    def test_names_the_file_and_the_checkpoint_before(
        self, store: CheckpointStore, damage: Callable[[Path], object], match: str
    ) -> None:
        damage(newest(store) / LAYER)
        assert_refused(store, match, LAYER)

    def test_of_the_only_checkpoint_lets_the_run_start_again(self, tmp_path: Path) -> None:
        store = make_store(tmp_path)
        path = store.write(make_checkpoint(2))
        (path / LAYER).unlink()
        with refused("cannot be read.*; start a new --run-dir$"):
            store.read_latest()

    def test_that_is_not_named(self, store: CheckpointStore) -> None:
        change_manifest(store, lambda manifest: manifest["layers"].pop("2"))
        assert_refused(store, "names no file for layer 2", MANIFEST)


class TestAManifest:
    def test_that_is_missing(self, store: CheckpointStore) -> None:
        (newest(store) / MANIFEST).unlink()
        assert_refused(store, "is missing: the checkpoint is not whole", MANIFEST)

    def test_that_is_no_json(self, store: CheckpointStore) -> None:
        (newest(store) / MANIFEST).write_text("no JSON")
        assert_refused(store, "is no manifest of a checkpoint", MANIFEST)

    def test_with_one_bit_of_a_temperature_changed(self, store: CheckpointStore) -> None:
        path = store.directory / "step-00000003"
        store.write(dataclasses.replace(make_checkpoint(3), readouts=READOUTS))
        assert store.read(path).readouts is not None
        flip(path / MANIFEST, path.joinpath(MANIFEST).read_bytes().index(b'"last": ') + 10)
        with refused("is no manifest of a checkpoint: .*its content is not what was written"):
            store.read(path)

    def test_whose_numbers_contradict_each_other(self, store: CheckpointStore) -> None:
        change_manifest(store, lambda manifest: manifest["progress"].update(loss_sums=[1.0]))
        assert_refused(store, "is damaged: its numbers do not fit", MANIFEST)

    def test_whose_readouts_are_of_another_network(self, store: CheckpointStore) -> None:
        readouts = {"window": [0, 4], "temperatures": None, "fusion": None}
        change_manifest(store, lambda manifest: manifest.update(readouts=readouts))
        assert_refused(store, "is damaged: its window does not fit 4 layers", MANIFEST)

    def test_of_another_format_must_not_be_deleted(self, store: CheckpointStore) -> None:
        change_manifest(store, lambda manifest: manifest.update(format=2))
        with refused("has format 2 and this version reads 1: resume with the version") as caught:
            store.read_latest()
        assert "delete" not in str(caught.value)


class TestNamesThatLeadElsewhere:
    """Nothing outside of a checkpoint is read through it."""

    @pytest.fixture
    def outside(self, store: CheckpointStore, tmp_path: Path) -> Path:
        """A layer's own bytes, so that only the place is wrong."""
        return Path(shutil.copy(newest(store) / "layer-000.safetensors", tmp_path / "outside"))

    @pytest.fixture(autouse=True)
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        opened: list[Path] = []
        monkeypatch.setattr("numpy.fromfile", lambda path, **options: opened.append(path))
        return opened

    @pytest.mark.parametrize(
        "name",
        ["../x", "/etc/passwd", "a/../../x", f"{LAYER}/../../x", "a/b", "", ".", "..", "\0"],
    )
    def test_a_path(
        self, store: CheckpointStore, outside: Path, opened: list[Path], name: str
    ) -> None:
        for text in (name, str(outside), os.path.relpath(outside, newest(store))):
            change_manifest(store, lambda m, t=text: m["layers"]["0"].update(file=t))
            with refused("not a file of the checkpoint itself; delete .* to resume from"):
                store.read_latest()
        assert not opened

    @pytest.mark.parametrize(
        ("make", "match"),
        [
            (lambda path, outside: path.symlink_to(outside), "is a link"),
            (lambda path, outside: path.symlink_to("/dev/zero"), "is a link"),
            (lambda path, outside: path.symlink_to(path), "is a link"),
            (lambda path, outside: os.mkfifo(path), "it is no file"),
            (lambda path, outside: path.mkdir(), "it is no file"),
        ],
        ids=["file", "zero", "self", "pipe", "folder"],
    )
    @pytest.mark.parametrize("name", ["layer-000.safetensors", MANIFEST])
    def test_a_link_or_no_file_at_all(
        self,
        store: CheckpointStore,
        outside: Path,
        opened: list[Path],
        name: str,
        make: Callable[[Path, Path], object],
        match: str,
    ) -> None:
        path = newest(store) / name
        if name == MANIFEST:
            shutil.copy(path, outside)
        path.unlink()
        make(path, outside)
        with refused(match):
            store.read_latest()
        assert not opened


class TestAPickle:
    def test_in_place_of_a_layer_is_not_loaded(
        self, store: CheckpointStore, tmp_path: Path
    ) -> None:
        marker = tmp_path / "executed"
        data = pickle.dumps(MarkerOnLoad(marker))
        (newest(store) / LAYER).write_bytes(data)
        assert_refused(store, "is damaged", LAYER)
        # also where the manifest has its digest
        sha256 = hashlib.sha256(data).hexdigest()
        change_manifest(store, lambda manifest: manifest["layers"]["1"].update(sha256=sha256))
        assert_refused(store, "is no safetensors file", LAYER)
        assert not marker.exists()
        pickle.loads(data)
        assert marker.exists()  # so it would have shown

    def test_in_place_of_the_manifest_is_not_loaded(
        self, store: CheckpointStore, tmp_path: Path
    ) -> None:
        marker = tmp_path / "executed"
        (newest(store) / MANIFEST).write_bytes(pickle.dumps(MarkerOnLoad(marker)))
        assert_refused(store, "no manifest", MANIFEST)
        assert not marker.exists()
