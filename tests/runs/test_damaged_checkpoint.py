"""Checkpoints that something happened to: nothing in them is run, and each is said."""

import hashlib
import json
import math
import pickle  # noqa: TID251 - strangers' files are made with it
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from rayff.config.errors import UserError
from rayff.runs.checkpoint import CheckpointStore
from tests.runs.checkpoints import (
    make_checkpoint,
    make_store,
    same,
)
from tests.runs.damage import MarkerOnLoad, mutate, wrong_value


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


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


def wrong_or_not_finite(data: st.DataObject, old: Any) -> Any:
    """Return another kind of value; of a number one that is none, as others could be right."""
    value = wrong_value(data, old)
    if type(old) is float and type(value) in (int, float):
        value = data.draw(st.sampled_from([math.inf, -math.inf, math.nan, 10**400]))
    return value


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
        mutated = mutate(manifest, data, wrong_or_not_finite)
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
