"""All that is checked before anything is started, and that a mistake leaves nothing behind."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load, save

from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.engine.preparation import default_run_dir, prepare
from rayff.runs.checkpoint import Progress
from tests.data.files import write_parquet
from tests.engine.local_run import train
from tests.helpers.tiny_task import write_tiny_task
from tests.runs.test_metrics import write as write_metrics


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return every file below the folder with what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run directories without a name lie below the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def task(tmp_path: Path) -> str:
    return write_tiny_task(tmp_path / "tiny")


def refused(folder: Path, run: TrainConfig, *, resume: bool = False, match: str) -> None:
    before = tree(folder)
    with pytest.raises(UserError, match=match) as caught:
        prepare(run, resume=resume)
    assert "\n" not in str(caught.value)
    assert tree(folder) == before


class TestMistakes:
    """`{task}` stands for a folder of 96 RGB images in four classes."""

    MISTAKES: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("a task that is none", {"task": "cifar1"}, "no task 'cifar1'.*did you mean 'cifar10'"),
        ("a folder that is none", {"task": "./none"}, "there is no folder none: give the folder"),
        ("a folder without splits", {"task": "./empty"}, "empty has no train and no test split"),
        ("a task without its data", {"task": "mnist"}, "needs its data: pass --data-dir"),
        ("data that is elsewhere", {"task": "mnist", "data_dir": "empty"}, "no data of the task"),
        ("a network that is none", {"arch": "tinycn"}, "'tinycn'.*did you mean 'tinycnn'"),
        ("groups that are not whole", {"width": 6}, "6 channels of layer 0 .*--width 8"),
        ("a batch that is too large", {"batch_size": 97}, "--batch-size 97 .* 96 training images"),
        (
            "a cut that is too far",
            {"cuts": (1, 4)},
            "--cuts 1,4: the network has 4 layers.*most 3",
        ),
        ("cuts out of order", {"cuts": (2, 1)}, "--cuts 2,1: .*ascending"),
        ("a cut at 0", {"cuts": (0,)}, "--cuts 0: .*from 1 on"),
        ("cuts and stages", {"cuts": (1, 2), "stages": 2}, "makes 3 stages, but --stages says 2"),
        ("too many stages", {"stages": 5}, "--stages 5: the network has 4 layers.*--stages 4"),
        ("replicas and stages", {"replicas": "1,2", "stages": 3}, "makes 2 stages, but --stages"),
        ("too many replicas", {"replicas": "33"}, "33 actors cannot share a batch of 32"),
        ("a folder in use", {"run_dir": "used"}, "--run-dir used is not empty: add --resume"),
        ("a file as folder", {"run_dir": "file"}, "--run-dir file is a file; name a folder"),
        ("a name too long", {"run_dir": "x" * 300}, "--run-dir x+ .*name another folder"),
    )

    @pytest.mark.parametrize(
        ("options", "match"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
    )
    @pytest.mark.parametrize("named", [True, False], ids=["named", "by default"])
    def test_are_said_and_leave_nothing_behind(
        self, task: str, tmp_path: Path, options: dict[str, Any], match: str, named: bool
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "used").mkdir()
        (tmp_path / "used" / "notes.txt").write_text("mine")
        (tmp_path / "file").write_text("mine")
        run_dir = {"run_dir": str(tmp_path / "runs" / "first")} if named else {}
        known = {"task": task, "width": 4, "batch_size": 32, **run_dir, **options}
        refused(tmp_path, TrainConfig(**known), match=match)

    def test_an_image_that_is_none(self, tmp_path: Path) -> None:
        write_tiny_task(tmp_path / "task")
        write_parquet(tmp_path / "task" / "test.parquet", [0, 1], [b"no", b"image"])
        refused(
            tmp_path,
            TrainConfig(task=str(tmp_path / "task"), width=4),
            match=r"test.parquet.*row 0",
        )


class TestMistakesOfAResumption:
    @pytest.fixture
    def run(self, task: str, tmp_path: Path) -> TrainConfig:
        run = TrainConfig(
            task=task, width=4, batch_size=96, epochs=1, lr=0.01, run_dir=str(tmp_path / "run")
        )
        train(run)
        return run

    def changed(self, run: TrainConfig, **options: Any) -> TrainConfig:
        return TrainConfig(**{**run.to_dict(), **options})

    def test_another_network_or_seed(self, run: TrainConfig, tmp_path: Path) -> None:
        for options, match in (
            ({"width": 8}, "--width 8: the run was made with 4, and a resumed run keeps it"),
            ({"arch": "vgg"}, "--arch vgg: the run was made with tinycnn"),
            ({"seed": 1}, "--seed 1: the run was made with 0"),
            ({"epochs": 2}, "--epochs 2: the run was made with 1"),
            ({"run_dir": None}, "--resume needs --run-dir"),
            ({"run_dir": "nowhere"}, "no run directory nowhere"),
        ):
            refused(tmp_path, self.changed(run, **options), resume=True, match=match)

    def test_a_checkpoint_of_another_architecture(self, run: TrainConfig, tmp_path: Path) -> None:
        config = tmp_path / "run" / "config.json"
        config.write_text(config.read_text().replace('"width": 4', '"width": 8'))
        wider = self.changed(run, width=8)
        refused(tmp_path, wider, resume=True, match="is a checkpoint of another architecture")

    def test_data_that_has_grown(self, task: str, run: TrainConfig, tmp_path: Path) -> None:
        write_tiny_task(Path(task), num_train=97)
        refused(tmp_path, run, resume=True, match="has changed: an epoch has 2 batches now")
        write_tiny_task(Path(task))

    def test_a_damaged_checkpoint(self, run: TrainConfig, tmp_path: Path) -> None:
        layer = tmp_path / "run" / "checkpoints" / "step-00000001" / "layer-002.safetensors"
        layer.write_bytes(layer.read_bytes()[:-1])
        refused(tmp_path, run, resume=True, match=f"{layer} is damaged.*to start the run again")

    def test_a_layer_whose_digest_is_right_and_whose_content_is_not(
        self, run: TrainConfig, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run" / "checkpoints" / "step-00000001"
        path, manifest = folder / "layer-002.safetensors", folder / "manifest.json"
        tensors = load(path.read_bytes())
        tensors["optimizer.exp_avg"] = tensors["optimizer.exp_avg"][:1].clone()
        content = save(tensors)
        was = hashlib.sha256(path.read_bytes()).hexdigest()
        path.write_bytes(content)
        now = hashlib.sha256(content).hexdigest()
        manifest.write_text(manifest.read_text().replace(was, now))
        refused(
            tmp_path,
            run,
            resume=True,
            match=r"optimizer.exp_avg of layer 2 has shape .*delete .*checkpoints/step-00000001",
        )

    def test_the_metrics_of_another_network(self, run: TrainConfig, tmp_path: Path) -> None:
        (tmp_path / "run" / "metrics.parquet").unlink()
        write_metrics(tmp_path / "run", 1)
        match = "is of a network of 3 layers, and the run's has 4; move it away"
        refused(tmp_path, run, resume=True, match=match)

    @pytest.mark.parametrize(
        "progress", [{"epoch": 2, "batch": 0}, {"epoch": 0, "batch": 1, "images": 95}]
    )
    def test_a_checkpoint_that_stands_where_the_run_never_does(
        self, run: TrainConfig, tmp_path: Path, progress: dict[str, int]
    ) -> None:
        checkpoints = tmp_path / "run" / "checkpoints"
        (checkpoints / "step-00000001").rename(
            checkpoints / f"step-{progress['epoch'] + progress['batch']:08d}"
        )
        path = next(checkpoints.iterdir()) / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["step"] = progress["epoch"] + progress["batch"]
        sums = [1.0] * 4 if progress["batch"] else []
        manifest["progress"] = {"images": 0, **progress, "loss_sums": sums}
        path.write_text(json.dumps(manifest))
        refused(tmp_path, run, resume=True, match="does not fit the checkpoint of step")

    def test_without_resume_the_run_is_not_touched(self, run: TrainConfig, tmp_path: Path) -> None:
        refused(tmp_path, run, match="is not empty: add --resume")


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

    def test_the_recipe_is_written_out(self, task: str) -> None:
        """The paper's, with tinycnn's weight decay and what the run says."""
        prepared = prepare(TrainConfig(task=task, width=4, batch_size=32, lr=0.5), resume=False)
        run = prepared.run
        written = (run.epochs, run.batch_size, run.optimizer, run.lr, run.lr_min)
        assert written == (150, 32, "adamw", 0.5, 0.008)
        assert (run.weight_decay, run.dropout) == (0.01, 0.2)
        assert (prepared.recipe.epochs, prepared.recipe.lr) == (150, 0.5)

    def test_the_tasks_own_recipe_stands_over_the_papers(self) -> None:
        run = prepare(TrainConfig(task="digits", width=10, epochs=3), resume=False).run
        assert (run.epochs, run.batch_size, run.lr, run.lr_min) == (3, 16, 0.012, 0.0003)

    def test_a_resumed_run_where_there_is_no_checkpoint_yet(self, task: str) -> None:
        run = TrainConfig(task=task, width=4, batch_size=32, run_dir="run")
        prepare(run, resume=False).directory.create(run)
        assert prepare(run, resume=True).progress == Progress()

    def test_a_folder_without_a_name_is_named_after_the_run(self, task: str) -> None:
        run = TrainConfig(task=task, arch="resnet")
        assert re.fullmatch(r"runs/resnet-tiny-\d{8}-\d{6}", default_run_dir(run))
        prepared = prepare(TrainConfig(task=task, width=4, batch_size=32), resume=False)
        assert prepared.directory.path.parent == Path("runs")

    def test_a_limit_takes_the_first_images_of_each_split(self, task: str) -> None:
        whole = prepare(TrainConfig(task=task, width=4, batch_size=8), resume=False)
        few = prepare(TrainConfig(task=task, width=4, batch_size=8, limit=25), resume=False)
        assert {split: len(images) for split, images in few.splits.items()} == {
            "train": 25,
            "valid": 20,
            "test": 25,
        }
        for split, images in few.splits.items():
            taken = whole.splits[split]
            assert images.images.tobytes() == taken.images[:25].tobytes()
            assert images.labels.tolist() == taken.labels[:25].tolist()
        assert few.schedule(chunk=1).batches_per_epoch == 4

    def test_a_limit_below_the_batch_size_is_refused(self, task: str, tmp_path: Path) -> None:
        run = TrainConfig(task=task, width=4, batch_size=32, limit=31)
        refused(tmp_path, run, match="--batch-size 32 is larger than the 31 training images")
