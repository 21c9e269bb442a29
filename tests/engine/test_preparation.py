"""Checks before anything is started; a mistake leaves nothing behind."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load, save

from rayff.config.train_config import TrainConfig
from rayff.engine.preparation import default_run_dir, prepare
from rayff.runs.checkpoint import Progress
from tests.data.files import write_parquet
from tests.helpers.augmentations import DARKEN, NARROW
from tests.helpers.losses import LINEAR
from tests.helpers.mistakes import refused, tree
from tests.helpers.runs import train_locally
from tests.helpers.tiny_task import tiny_config, write_tiny_task
from tests.runs.test_metrics import write as write_metrics


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run directories without a name lie below the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def task(tmp_path: Path) -> str:
    return write_tiny_task(tmp_path / "tiny")


class TestMistakes:
    """Of a run on 96 RGB images in four classes."""

    MISTAKES: tuple[tuple[dict[str, Any], str], ...] = (
        ({"task": "cifar1"}, "'cifar1'.*did you mean 'cifar10'"),
        ({"task": "./none"}, "there is no folder .*none, or nothing in it: give the folder"),
        ({"task": "./empty"}, "there is no folder .*empty, or nothing in it"),
        ({"task": "mnist"}, "needs its data: pass --data-dir"),
        ({"task": "mnist", "data_dir": "empty"}, "no data of the task"),
        ({"arch": "tinycn"}, "'tinycn'.*did you mean 'tinycnn'"),
        ({"width": 6}, "6 channels of layer 0 .*--width 8"),
        ({"batch_size": 97}, "--batch-size 97 .* 96 training images"),
        ({"limit": 31}, "--batch-size 32 is larger than the 31 training images"),
        ({"cuts": (1, 4)}, "--cuts 1,4: the network has 4 layers.*most 3"),
        ({"cuts": (2, 1)}, "--cuts 2,1: .*ascending"),
        ({"cuts": (0,)}, "--cuts 0: .*from 1 on"),
        ({"cuts": (1, 2), "stages": 2}, "makes 3 stages, but --stages says 2"),
        ({"stages": 5}, "--stages 5: the network has 4 layers.*--stages 4"),
        ({"elastic": "5:6"}, "--elastic 5:6: the network has 4 layers.*begin with 4"),
        ({"replicas": "1,2", "stages": 3}, "makes 2 stages, but --stages"),
        ({"replicas": "33"}, "33 actors cannot share a batch of 32"),
        ({"kernels": "conv,conv"}, "--kernels names 2 layers, but the network has 4"),
        ({"loss": "goodnes"}, "--loss.*'goodnes'.*did you mean 'goodness'"),
        ({"loss": "nowhere:Loss"}, "--loss nowhere:Loss: the module nowhere cannot be imported"),
        ({"loss": "torch.nn:Linaer"}, "torch.nn has no 'Linaer'.*did you mean 'Linear'"),
        ({"loss": "math:pi"}, "--loss math:pi is not a subclass of torch.nn.Module"),
        ({"loss": "torch.nn:Linear"}, "--loss torch.nn:Linear cannot be made for layer 0 "),
        ({"optimizer": "adamx"}, "--optimizer.*'adamx'.*did you mean 'adam"),
        ({"optimizer": "math:pi"}, "--optimizer math:pi is not a subclass of torch.optim"),
        ({"augment": "flop"}, "--augment.*'flop'.*did you mean 'flip'"),
        ({"augment": "flip:2"}, "--augment flip:2: flip takes no strength"),
        ({"augment": "crop:2.5"}, "--augment crop:2.5: the strength must be a whole number"),
        ({"augment": "flip,crop:32"}, "--augment crop:32: images of 32x32 .* 31 at most"),
        ({"augment": f"{DARKEN}:2"}, f"--augment {DARKEN}:2: .* takes no strength"),
        ({"augment": NARROW}, r"narrow returned \(16, 3, 32, 31\) .*same shape and type"),
        ({"augment": "flip,math:pi"}, "--augment math:pi is not callable"),
        ({"run_dir": "used"}, "--run-dir used is not empty: add --resume"),
        ({"run_dir": "file"}, "--run-dir file is a file; name a folder"),
        ({"run_dir": "x" * 300}, "--run-dir x+ .*name another folder"),
    )

    @pytest.mark.parametrize(
        ("options", "match"), MISTAKES, ids=lambda value: str(value)[:40].replace("/", "")
    )
    @pytest.mark.parametrize("named", [True, False], ids=["named", "by default"])
    def test_are_one_sentence_and_leave_nothing_behind(
        self, task: str, tmp_path: Path, options: dict[str, Any], match: str, named: bool
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "used").mkdir()
        (tmp_path / "used" / "notes.txt").write_text("mine")
        (tmp_path / "file").write_text("mine")
        run_dir = {"run_dir": str(tmp_path / "runs" / "first")} if named else {}
        known = {"task": task, "width": 4, "batch_size": 32, **run_dir, **options}
        with refused(match, tmp_path):
            prepare(TrainConfig(**known), resume=False)

    def test_an_image_that_is_none(self, task: str, tmp_path: Path) -> None:
        write_parquet(tmp_path / "tiny" / "test.parquet", [0, 1], [b"no", b"image"])
        with refused(r"test.parquet.*row 0", tmp_path):
            prepare(TrainConfig(task=task, width=4), resume=False)


class TestMistakesOfAResumption:
    CHECKPOINT = Path("run/checkpoints/step-00000001")

    @pytest.fixture
    def config(self, task: str, tmp_path: Path) -> TrainConfig:
        config = tiny_config(task, tmp_path / "run", batch_size=96, epochs=1, chunk=1)
        train_locally(config)
        return config

    def refused(self, config: TrainConfig, match: str, **options: Any) -> None:
        with refused(match, Path.cwd()):
            prepare(TrainConfig(**{**config.to_dict(), **options}), resume=True)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"width": 8}, "--width 8: the run was made with 4, and a resumed run keeps it"),
            ({"seed": 1}, "--seed 1: the run was made with 3"),
            ({"loss": LINEAR}, f"--loss {LINEAR}: the run was made with goodness"),
            ({"run_dir": None}, "--resume needs --run-dir"),
            ({"run_dir": "nowhere"}, "no run directory nowhere"),
        ],
        ids=str,
    )
    def test_another_network_recipe_or_folder(
        self, config: TrainConfig, options: dict[str, Any], match: str
    ) -> None:
        self.refused(config, match, **options)

    def test_a_checkpoint_of_another_architecture(self, config: TrainConfig) -> None:
        path = Path("run/config.json")
        path.write_text(path.read_text().replace('"width": 4', '"width": 8'))
        self.refused(config, "is a checkpoint of another architecture", width=8)

    def test_data_that_has_grown(self, task: str, config: TrainConfig) -> None:
        write_tiny_task(Path(task), num_train=97)
        self.refused(config, "was trained on other data: labels, images or classes")

    def test_a_damaged_checkpoint(self, config: TrainConfig) -> None:
        layer = self.CHECKPOINT / "layer-002.safetensors"
        layer.write_bytes(layer.read_bytes()[:-1])
        self.refused(config, f"{layer} is damaged.*; start a new --run-dir")

    def test_a_layer_whose_digest_is_right_and_whose_content_is_not(
        self, config: TrainConfig
    ) -> None:
        path, manifest = (
            self.CHECKPOINT / "layer-002.safetensors",
            self.CHECKPOINT / "manifest.json",
        )
        tensors = load(path.read_bytes())
        tensors["optimizer.exp_avg"] = tensors["optimizer.exp_avg"][:1].clone()
        was = hashlib.sha256(path.read_bytes()).hexdigest()
        path.write_bytes(save(tensors))
        now = hashlib.sha256(path.read_bytes()).hexdigest()
        listed = json.loads(manifest.read_text().replace(was, now))
        del listed["sha256"]
        manifest.write_text(json.dumps(listed))
        match = f"optimizer.exp_avg of layer 2 has shape .*delete .*{self.CHECKPOINT} to continue"
        self.refused(config, match)

    def test_the_metrics_of_another_network(self, config: TrainConfig) -> None:
        Path("run/metrics.parquet").unlink()
        write_metrics(Path("run"), 1)
        match = "is of a network of 3 layers, and the run's has 4; move it away"
        self.refused(config, match)

    @pytest.mark.parametrize(
        "progress",
        [{"epoch": 0, "batch": 2, "images": 96}, {"epoch": 0, "batch": 1, "images": 95}],
    )
    def test_a_checkpoint_of_a_position_that_the_run_never_has(
        self, config: TrainConfig, progress: dict[str, int]
    ) -> None:
        step = progress["epoch"] + progress["batch"]
        path = self.CHECKPOINT.rename(self.CHECKPOINT.with_name(f"step-{step:08d}"))
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["step"] = step
        del manifest["sha256"]
        sums = [1.0] * 4 if progress["batch"] else []
        manifest["progress"] = {"images": 0, **progress, "loss_sums": sums}
        (path / "manifest.json").write_text(json.dumps(manifest))
        self.refused(config, "does not fit the checkpoint of step")

    def test_without_resume_the_run_is_not_touched(self, config: TrainConfig) -> None:
        with refused("is not empty: add --resume", Path.cwd()):
            prepare(config, resume=False)


class TestWhatIsPrepared:
    def test_a_new_run(self, task: str, tmp_path: Path) -> None:
        before = tree(tmp_path)
        run = TrainConfig(task=task, arch="tinycnn", width=8, batch_size=32, seed=4, run_dir="run")
        prepared = prepare(run, resume=False)
        assert tree(tmp_path) == before
        assert prepared.checkpoint is None
        assert prepared.progress == Progress()
        assert prepared.directory.path == Path("run")
        assert {split: len(images) for split, images in prepared.splits.items()} == {
            "train": 96,
            "valid": 20,
            "test": 30,
        }
        network = prepared.architecture
        assert (network.num_classes, network.image_channels, len(network)) == (4, 3, 4)
        assert [layer.out_channels for layer in network.layers] == [8, 16, 32, 32]
        schedule = prepared.schedule(chunk=5)
        assert (schedule.chunk, schedule.seed, schedule.checkpoint_every) == (5, 4, 1)
        assert schedule.batches_per_epoch == 3
        store = prepared.checkpoints
        assert (store.directory, store.seed, store.keep) == (Path("run/checkpoints"), 4, 2)

    def test_a_resumed_run_where_there_is_no_checkpoint_yet(self, task: str) -> None:
        run = TrainConfig(task=task, width=4, batch_size=32, run_dir="run")
        prepare(run, resume=False).directory.create(run)
        assert prepare(run, resume=True).progress == Progress()

    def test_a_folder_without_a_name_is_named_after_the_run(self, task: str) -> None:
        run = TrainConfig(task=task, arch="resnet")
        assert re.fullmatch(r"runs/resnet-tiny-\d{8}-\d{6}", default_run_dir(run))
        prepared = prepare(TrainConfig(task=task, width=4, batch_size=32), resume=False)
        assert prepared.directory.path.parent == Path("runs")

    def test_a_limit_takes_images_of_each_split_in_their_order(self, task: str) -> None:
        whole = prepare(TrainConfig(task=task, width=4, batch_size=8), resume=False)
        few = prepare(TrainConfig(task=task, width=4, batch_size=8, limit=25), resume=False)
        assert {split: len(images) for split, images in few.splits.items()} == {
            "train": 25,
            "valid": 20,
            "test": 25,
        }
        for split, images in few.splits.items():
            taken = whole.splits[split]
            rows = [image.tobytes() for image in taken.images]
            chosen = [rows.index(image.tobytes()) for image in images.images]
            assert chosen == sorted(set(chosen))
            assert images.labels.tolist() == taken.labels[chosen].tolist()
            assert np.ptp(np.bincount(images.labels)) <= 2
        assert few.schedule(chunk=1).batches_per_epoch == 4
