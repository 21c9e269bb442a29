"""A checkpoint that a stranger made, down to the layers, whose digests are right."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayff.config.errors import TrainingDiverged, UserError
from rayff.config.train_config import TrainConfig
from rayff.data.tasks import TaskData, load_task
from rayff.engine import preparation
from rayff.engine.commands import Train
from rayff.engine.preparation import Prepared, prepare
from tests.engine.local_run import local_pipeline, train
from tests.fuzz.checks import cases, read_or_refused
from tests.fuzz.mutations import broken_bytes, broken_json
from tests.fuzz.tensors import broken_tensors
from tests.helpers.tiny_task import write_tiny_task

RUN = TrainConfig(
    arch="tinycnn", width=4, epochs=2, batch_size=32, lr=0.01, rule="plain", precision="fp32"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A training that was stopped in the middle of an epoch, and its one checkpoint."""

    spec: TrainConfig
    checkpoint: Path

    @functools.cached_property
    def whole(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.checkpoint.iterdir()}

    def change(self, name: str, content: bytes) -> None:
        """Write a file of the checkpoint anew, with all others as they were."""
        for other, was in self.whole.items():
            (self.checkpoint / other).write_bytes(was)
        (self.checkpoint / name).write_bytes(content)

    def change_layer(self, name: str, content: bytes) -> None:
        """Write a layer anew, and its digest into the manifest."""
        self.change(name, content)
        manifest = json.loads(self.whole["manifest.json"])
        for entry in manifest["layers"].values():
            if entry["file"] == name:
                entry["sha256"] = hashlib.sha256(content).hexdigest()
        (self.checkpoint / "manifest.json").write_text(json.dumps(manifest))

    def resume(self) -> Prepared | None:
        folder = self.checkpoint.parent.parent
        return read_or_refused(lambda: prepare(self.spec, resume=True), folder)


@pytest.fixture(scope="module", params=["adamw", "sgd"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("checkpoints")
    spec = dataclasses.replace(
        RUN,
        task=write_tiny_task(folder / "task"),
        optimizer=request.param,
        run_dir=str(folder / "run"),
    )
    train(spec, stop_after=1)
    (checkpoint,) = (folder / "run" / "checkpoints").iterdir()
    return Run(spec, checkpoint)


@pytest.fixture(autouse=True)
def _images_that_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "load_task", _load_task)


@functools.cache
def _load_task(task: str, **options: Any) -> TaskData:
    return load_task(task, **options)


def goes_on(prepared: Prepared) -> None:
    """The stages take the layers and learn from another batch."""
    pipeline = local_pipeline(prepared, cuts=(2,))
    commands = prepared.schedule(1).commands(prepared.progress.epoch, prepared.progress.batch)
    command = next(command for command in commands if isinstance(command, Train))
    for _ in pipeline.stream([command]):
        pass


@cases(200)
@given(data=st.data(), layer=st.integers(0, 3))
def test_of_layers_that_are_not_as_a_layer_is(run: Run, data: st.DataObject, layer: int) -> None:
    name = f"layer-{layer:03d}.safetensors"
    content = data.draw(broken_tensors(run.whole[name]))
    run.change_layer(name, content)
    prepared = run.resume()
    if prepared is not None:
        with contextlib.suppress(TrainingDiverged):  # an optimizer's numbers may be anything
            goes_on(prepared)


@cases(100)
@given(data=st.data())
def test_of_layers_with_bytes_changed(run: Run, data: st.DataObject) -> None:
    name = "layer-001.safetensors"
    header = run.whole[name][:400]
    content = data.draw(broken_bytes(header)) + run.whole[name][400:]
    run.change_layer(name, content)
    prepared = run.resume()
    if prepared is not None:
        with contextlib.suppress(TrainingDiverged):  # numbers that are finite, and too large
            goes_on(prepared)


@cases(200)
@given(data=st.data())
def test_of_manifests_with_values_changed(run: Run, data: st.DataObject) -> None:
    manifest = data.draw(broken_json(json.loads(run.whole["manifest.json"])))
    run.change("manifest.json", json.dumps(manifest).encode())
    still_itself(run)


@cases(100)
@given(data=st.data())
def test_of_manifests_with_bytes_changed(run: Run, data: st.DataObject) -> None:
    run.change("manifest.json", data.draw(broken_bytes(run.whole["manifest.json"])))
    still_itself(run)


def still_itself(run: Run) -> None:
    prepared = run.resume()
    if prepared is not None:
        checkpoint = prepared.checkpoint
        assert checkpoint is not None
        assert (checkpoint.step, checkpoint.progress.images) == (1, 32)
        for index, state in checkpoint.states.items():
            assert state.tobytes() == run.whole[f"layer-{index:03d}.safetensors"]


class TestNamesThatLeadElsewhere:
    """Nothing outside of a checkpoint is read through it."""

    @pytest.fixture
    def outside(self, run: Run, tmp_path: Path) -> Path:
        """A layer's own bytes, so that nothing but the place is wrong."""
        run.change("manifest.json", run.whole["manifest.json"])
        path = tmp_path / "outside"
        path.write_bytes(run.whole["layer-000.safetensors"])
        return path

    def refused(self, run: Run, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[Any] = []
        monkeypatch.setattr("numpy.fromfile", lambda path, **kw: opened.append(path))
        with pytest.raises(UserError, match=match):
            prepare(run.spec, resume=True)
        assert not opened

    @pytest.mark.parametrize(
        "name", ["../x", "/etc/passwd", "a/../../x", "layer-000.safetensors/../../x", "..", "\0"]
    )
    def test_a_path(
        self, run: Run, outside: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for text in (name, str(outside), os.path.relpath(outside, run.checkpoint)):
            manifest = json.loads(run.whole["manifest.json"])
            manifest["layers"]["0"]["file"] = text
            run.change("manifest.json", json.dumps(manifest).encode())
            self.refused(run, "not a file of the checkpoint itself", monkeypatch)

    LINKS: tuple[tuple[str, Callable[[Path, Path], object]], ...] = (
        ("is a link", lambda path, outside: path.symlink_to(outside)),
        ("is a link", lambda path, outside: path.symlink_to("/dev/zero")),
        ("is a link", lambda path, outside: path.symlink_to(path)),
        ("it is no file", lambda path, outside: os.mkfifo(path)),
        ("it is no file", lambda path, outside: path.mkdir()),
    )

    @pytest.mark.parametrize(("match", "make"), LINKS, ids=["file", "zero", "self", "pipe", "dir"])
    @pytest.mark.parametrize("name", ["layer-000.safetensors", "manifest.json"])
    def test_a_link_or_no_file_at_all(
        self,
        run: Run,
        outside: Path,
        name: str,
        match: str,
        make: Callable[[Path, Path], object],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path = run.checkpoint / name
        if name == "manifest.json":
            outside.write_bytes(run.whole[name])
        path.unlink()
        make(path, outside)
        try:
            self.refused(run, match, monkeypatch)
        finally:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def test_the_checkpoint_itself_is_read(self, run: Run, outside: Path) -> None:
        prepared = prepare(run.spec, resume=True)
        assert prepared.checkpoint is not None
        goes_on(prepared)
        assert torch.isfinite(torch.tensor(prepared.checkpoint.progress.loss_sums)).all()
