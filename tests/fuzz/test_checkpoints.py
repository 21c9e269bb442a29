"""Checkpoints of an attacker's, down to the layers, with digests that are right."""

import contextlib
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayff import TrainConfig
from rayff.config.errors import TrainingDiverged
from rayff.data.loading import DataOptions, load_task
from rayff.data.tasks import TaskData
from rayff.engine import preparation
from rayff.engine.commands import Train
from rayff.engine.local import local_pipeline, resolve_for
from rayff.engine.preparation import prepare
from rayff.engine.run import PreparedRun
from tests.fuzz.checks import cases, read_or_refused
from tests.fuzz.mutations import broken_bytes, broken_json, replaced
from tests.fuzz.tensors import broken_tensors
from tests.helpers.losses import LINEAR
from tests.helpers.runs import StopAfter, train_locally
from tests.helpers.tiny_task import tiny_config

CPU = torch.device("cpu")
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A training that was stopped in the middle of an epoch, and its one checkpoint."""

    config: TrainConfig
    checkpoint: Path
    changed: set[str] = dataclasses.field(default_factory=set)

    @functools.cached_property
    def whole(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.checkpoint.iterdir()}

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest without the digest of its content, as an older version wrote it."""
        manifest: dict[str, Any] = json.loads(self.whole[MANIFEST])
        del manifest["sha256"]
        return manifest

    def change(self, name: str, content: bytes) -> None:
        """Write a file of the checkpoint anew, with all others as they were."""
        while self.changed:
            other = self.changed.pop()
            (self.checkpoint / other).write_bytes(self.whole[other])
        (self.checkpoint / name).write_bytes(content)
        self.changed.add(name)

    def change_layer(self, name: str, content: bytes) -> None:
        """Write a layer anew, and its digest into the manifest."""
        self.change(name, content)
        manifest = self.manifest
        for entry in manifest["layers"].values():
            if entry["file"] == name:
                entry["sha256"] = hashlib.sha256(content).hexdigest()
        (self.checkpoint / MANIFEST).write_text(json.dumps(manifest))
        self.changed.add(MANIFEST)

    def resume(self) -> PreparedRun | None:
        folder = self.checkpoint.parent.parent
        return read_or_refused(lambda: prepare(self.config, resume=True), folder)

    def check_layers(self) -> None:
        """Resume; if that is not refused, the stages learn from another batch."""
        prepared = self.resume()
        if prepared is None:
            return
        run = resolve_for(prepared, CPU)
        assert run.checkpoint is not None
        pipeline = local_pipeline(run, (2,), CPU, run.checkpoint.states)
        commands = run.schedule(1).commands(run.progress.epoch, run.progress.batch)
        command = next(command for command in commands if isinstance(command, Train))
        with contextlib.suppress(TrainingDiverged):  # finite numbers may be too large
            list(pipeline.stream([command]))

    def check_manifest(self) -> None:
        """Resume; if that is not refused, the checkpoint is as it was written."""
        prepared = self.resume()
        if prepared is None:
            return
        checkpoint = prepared.checkpoint
        assert checkpoint is not None
        assert (checkpoint.step, checkpoint.progress.images) == (1, 40)
        if checkpoint.readouts is not None:
            first, last = checkpoint.readouts.window
            assert 0 <= first <= last < 4
        for index, state in checkpoint.states.items():
            assert state.tobytes() == self.whole[f"layer-{index:03d}.safetensors"]


@pytest.fixture(
    scope="module",
    params=[{"optimizer": "adamw"}, {"optimizer": "sgd"}, {"loss": LINEAR}],
    ids=["adamw", "sgd", "heads"],
)
def stopped(
    request: pytest.FixtureRequest, tiny_task: str, tmp_path_factory: pytest.TempPathFactory
) -> Stopped:
    run_dir = tmp_path_factory.mktemp("checkpoints") / "run"
    config = tiny_config(tiny_task, run_dir, rule="plain", precision="fp32", **request.param)
    train_locally(config, StopAfter(1))
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    return Stopped(config, checkpoint)


@pytest.fixture(autouse=True)
def _images_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "load_task", _load_task)


@functools.cache
def _load_task(options: DataOptions) -> TaskData:
    return load_task(options)


def test_the_cases_begin_with_a_checkpoint_that_is_read(stopped: Stopped) -> None:
    stopped.change(MANIFEST, stopped.whole[MANIFEST])
    assert stopped.resume() is not None
    stopped.check_layers()
    stopped.check_manifest()


@cases(150)
@given(data=st.data(), layer=st.integers(0, 3))
def test_with_tensors_that_no_layer_writes(
    stopped: Stopped, data: st.DataObject, layer: int
) -> None:
    name = f"layer-{layer:03d}.safetensors"
    stopped.change_layer(name, data.draw(broken_tensors(stopped.whole[name])))
    stopped.check_layers()


@cases(100)
@given(data=st.data())
def test_with_bytes_of_a_layer_changed(stopped: Stopped, data: st.DataObject) -> None:
    name = "layer-001.safetensors"
    head, rest = stopped.whole[name][:400], stopped.whole[name][400:]
    stopped.change_layer(name, data.draw(broken_bytes(head)) + rest)
    stopped.check_layers()


@pytest.mark.parametrize("stopped", [{"optimizer": "adamw"}], indirect=True)
class TestManifests:
    @pytest.mark.slow
    def test_with_each_value_of_another_kind(self, stopped: Stopped) -> None:
        for manifest in replaced(stopped.manifest):
            stopped.change(MANIFEST, json.dumps(manifest).encode())
            stopped.check_manifest()

    @cases(200)
    @given(data=st.data())
    def test_with_several_values_changed(self, stopped: Stopped, data: st.DataObject) -> None:
        manifest = data.draw(broken_json(stopped.manifest))
        stopped.change(MANIFEST, json.dumps(manifest).encode())
        stopped.check_manifest()
