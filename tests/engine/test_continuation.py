"""Runs that go on, begin with another run's layers, freeze some, keep the best, or stop early."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from rayff import TrainConfig, Trainer, load_model
from rayff.engine.continuation import as_ranges
from rayff.engine.preparation import prepare
from rayff.report.reader import read_run
from rayff.runs.model_file import read_model
from tests.data.files import write_parquet
from tests.helpers.mistakes import refused
from tests.helpers.modules import HERE
from tests.helpers.runs import (
    KillAfter,
    Killed,
    RecordingCallback,
    StopAfter,
    layer_files,
    timeless,
    train_locally,
)
from tests.helpers.tiny_task import BATCHES, tiny_config


def weights(run_dir: Path | str, step: int | None = None) -> dict[str, dict[str, torch.Tensor]]:
    """Return the tensors of each layer without its optimizer, by file."""
    return {
        name: {n: t for n, t in load(data).items() if not n.startswith("optimizer.")}
        for name, data in layer_files(run_dir, step).items()
    }


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestLonger:
    def test_a_complete_run_goes_on_with_the_bits_of_a_longer_one(
        self, tiny_task: str, tmp_path: Path
    ):
        constant = {"lr_schedule": "constant"}
        whole = train_locally(tiny_config(tiny_task, tmp_path / "a", epochs=4, **constant))
        train_locally(tiny_config(tiny_task, tmp_path / "b", epochs=2, **constant))
        longer = TrainConfig(
            task=tiny_task, run_dir=str(tmp_path / "b"), width=4, epochs=4, seed=3
        )
        result = train_locally(longer, resume=True)
        assert result.complete
        assert timeless(result.metrics)[2:] == timeless(whole.metrics)[2:]
        assert layer_files(tmp_path / "b") == layer_files(tmp_path / "a")

    def test_the_schedules_new_shape_is_said(self, tiny_task: str, tmp_path: Path):
        train_locally(tiny_config(tiny_task, tmp_path / "run"))  # a cosine from 0.01 to 0.008
        config = TrainConfig(task=tiny_task, run_dir=str(tmp_path / "run"), width=4, seed=3)
        longer = TrainConfig(**{**config.to_dict(), "epochs": 4, "lr": 0.1})
        said = prepare(longer, resume=True).notes
        assert said == (
            "goes on with --epochs 4 instead of 2, --lr 0.1 instead of 0.01: learning rate 0.054 "
            "in epoch 3 (before: 0.009 in epoch 2), 0.0215 in epoch 4",
        )
        constant = TrainConfig(**{**config.to_dict(), "epochs": 3, "lr_schedule": "constant"})
        assert prepare(constant, resume=True).notes == (
            "goes on with --epochs 3 instead of 2, --lr-schedule constant instead of cosine: "
            "learning rate 0.01 in epoch 3 (before: 0.009 in epoch 2)",
        )
        assert prepare(config, resume=True).notes == ()
        result = train_locally(longer, resume=True)
        assert [round(record.lr, 4) for record in result.metrics] == [0.01, 0.009, 0.054, 0.0215]

    def test_a_lower_learning_rate_ends_no_higher(self, tiny_task: str, tmp_path: Path):
        train_locally(tiny_config(tiny_task, tmp_path / "run"))
        lower = tiny_config(tiny_task, tmp_path / "run", epochs=3, lr=1e-4)
        assert prepare(lower, resume=True).recipe.lr_min == 1e-4

    def test_epochs_that_are_trained_already_are_a_mistake(self, tiny_task: str, tmp_path: Path):
        train_locally(tiny_config(tiny_task, tmp_path / "run"))
        shorter = tiny_config(tiny_task, tmp_path / "run", epochs=1)
        with refused("--epochs 1: the run has trained 2 already; name more"):
            prepare(shorter, resume=True)


@pytest.fixture(scope="module")
def source(tiny_task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("source") / "run"
    train_locally(tiny_config(tiny_task, run_dir, loss="linear"))
    return run_dir


@pytest.fixture
def other_task(tmp_path: Path) -> str:
    for split in ("train", "validation", "test"):
        labels: list[int | None] = [row % 2 for row in range(48)]
        write_parquet(tmp_path / "other" / f"{split}.parquet", labels, channels=3)
    return str(tmp_path / "other")


class TestInitFrom:
    def test_begins_with_all_layers_of_a_run_on_like_data(
        self, tiny_task: str, tmp_path: Path, source: Path
    ):
        config = tiny_config(tiny_task, tmp_path / "run", loss="linear", init_from=str(source))
        recording = RecordingCallback()
        train_locally(TrainConfig(**{**config.to_dict(), "keep_checkpoints": 9}), recording)
        assert recording.lines[:2] == ["start", "step-00000000"]
        begun, ended = weights(tmp_path / "run", 0), weights(source)
        assert all(same(begun[name], ended[name]) for name in ended)
        assert not same(
            weights(tmp_path / "run")["layer-000.safetensors"], begun["layer-000.safetensors"]
        )

    def test_heads_that_do_not_fit_are_made_anew_and_named(
        self, tmp_path: Path, source: Path, other_task: str
    ):
        config = tiny_config(other_task, tmp_path / "run", loss="linear", init_from=str(source))
        prepared = prepare(config, resume=False)
        assert prepared.notes == (
            f"begins with the weight of layers 0-3 of {source}",
            "made anew, for other shapes: loss.head.weight, loss.head.bias of layers 0-3",
        )
        assert prepared.checkpoint is not None
        for index, data in prepared.checkpoint.states.items():
            begun = load(data.tobytes())
            name = f"layer-{index:03d}.safetensors"
            assert torch.equal(begun["weight"], weights(source)[name]["weight"])
            assert torch.equal(begun["loss.head.bias"], torch.zeros(2))
            assert begun["loss.head.weight"].shape[0] == 2

    def test_groups_of_other_classes_are_told(
        self, tiny_task: str, tmp_path: Path, other_task: str
    ):
        train_locally(tiny_config(tiny_task, tmp_path / "source", epochs=1))
        config = tiny_config(other_task, tmp_path / "run", init_from=str(tmp_path / "source"))
        assert prepare(config, resume=False).notes[-1] == (
            "the channel groups, which stood for 4 classes, stand for 2 and learn anew"
        )

    def test_the_source_may_go_once_the_run_has_begun(self, tiny_task: str, tmp_path: Path):
        source = tmp_path / "source"
        train_locally(tiny_config(tiny_task, source, epochs=1))
        config = tiny_config(tiny_task, tmp_path / "a", init_from=str(source))
        train_locally(config)
        killed = tiny_config(tiny_task, tmp_path / "b", init_from=str(source))
        with pytest.raises(Killed):
            train_locally(killed, KillAfter(1))
        source.rename(tmp_path / "gone")
        train_locally(tiny_config(tiny_task, tmp_path / "b"), resume=True)
        assert layer_files(tmp_path / "b") == layer_files(tmp_path / "a")

    def test_backpropagation_begins_with_a_run_of_its_own(self, tiny_task: str, tmp_path: Path):
        first = tiny_config(tiny_task, tmp_path / "a", method="bp", lr=1e-3)
        train_locally(first)
        config = tiny_config(
            tiny_task, tmp_path / "b", method="bp", lr=0.0, epochs=1, init_from=str(tmp_path / "a")
        )
        train_locally(config)
        assert all(same(w, weights(tmp_path / "a")[n]) for n, w in weights(tmp_path / "b").items())

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"init_from": "nowhere"}, "--init-from: there is no run directory .*nowhere"),
            ({"init_from": ""}, "--init-from '' names no folder"),
            ({"width": 8}, "no layer of 'tinycnn' has the shape of one of 'tinycnn'.*--width"),
            (
                {"loss": "linear", "image_channels": 1, "freeze": "0-1"},
                "--freeze 0-1: layer 0 has another shape than in .*run .weight., so it begins",
            ),
        ],
    )
    def test_mistakes(
        self, tiny_task: str, tmp_path: Path, source: Path, options: dict[str, Any], sentence: str
    ):
        wanted = {"loss": "goodness", "init_from": str(source), **options}
        with refused(sentence):
            prepare(tiny_config(tiny_task, tmp_path / "run", **wanted), resume=False)
        assert not (tmp_path / "run").exists()


KINDS: tuple[dict[str, Any], ...] = (
    {"loss": "goodness"},
    {"loss": "linear", "clip_norm": 1.0},
    {"loss": "linear", "rule": "plain"},
    {"arch": f"{HERE}:every_kind", "loss": "predsim"},
)


class TestFreeze:
    @pytest.mark.parametrize("kind", KINDS, ids=str)
    def test_frozen_layers_stay_and_the_others_learn(
        self, tiny_task: str, tmp_path: Path, kind: dict[str, Any]
    ):
        source = tiny_config(tiny_task, tmp_path / "source", epochs=1, **kind)
        train_locally(source)
        options = {**kind, "freeze": "0,2", "init_from": str(tmp_path / "source")}
        whole = train_locally(tiny_config(tiny_task, tmp_path / "a", **options))
        cut = train_locally(
            tiny_config(tiny_task, tmp_path / "b", cuts=(1, 2), chunk=2, **options)
        )
        assert timeless(whole.metrics) == timeless(cut.metrics)
        assert layer_files(tmp_path / "a") == layer_files(tmp_path / "b")
        before, after = weights(tmp_path / "source"), weights(tmp_path / "a")
        stays = [same(before[name], after[name]) for name in sorted(before)]
        assert stays == [index in (0, 2) for index in range(len(stays))]
        losses = torch.tensor([record.layer_loss for record in whole.metrics])
        assert losses.isfinite().all()
        assert (losses > 0).all()

    def test_its_loss_is_that_of_its_activation_without_dropout(
        self, tiny_task: str, tmp_path: Path
    ):
        source = tiny_config(tiny_task, tmp_path / "source", loss="linear")
        train_locally(source)
        found = train_locally(
            tiny_config(
                *(tiny_task, tmp_path / "run"),
                **{"loss": "linear", "freeze": "0-2", "init_from": str(tmp_path / "source")},
            )
        )
        model = read_model(tmp_path / "source")
        images = prepare(tiny_config(tiny_task, tmp_path / "x"), resume=False).data.train
        pixels, labels = torch.from_numpy(images.images), torch.from_numpy(images.labels).long()
        logits = model.logits(pixels)[0].double()
        expected = torch.nn.functional.cross_entropy(logits, labels)
        assert found.metrics[0].layer_loss[0] == pytest.approx(expected.item(), rel=1e-5)

    def test_a_resumed_run_may_freeze_and_go_on(self, tiny_task: str, tmp_path: Path):
        train_locally(tiny_config(tiny_task, tmp_path / "run"))
        before = weights(tmp_path / "run")
        config = tiny_config(tiny_task, tmp_path / "run", epochs=3, freeze="0-2")
        assert prepare(config, resume=True).notes[-1] == "layers that only run forward: 0-2"
        train_locally(config, resume=True)
        after = weights(tmp_path / "run")
        assert [same(before[n], after[n]) for n in sorted(before)] == [True, True, True, False]
        thawed = tiny_config(tiny_task, tmp_path / "run", epochs=4, freeze="none")
        train_locally(thawed, resume=True)
        assert not same(
            after["layer-000.safetensors"], weights(tmp_path / "run")["layer-000.safetensors"]
        )

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            (
                {"freeze": "0-4"},
                "--freeze 0-4: the network has 4 layers, of which the last is number 3",
            ),
            ({"freeze": "0-3"}, "--freeze 0-3 leaves no layer to learn"),
            ({"freeze": "2-1"}, "--freeze 2-1: a range begins with its lower number"),
            ({"freeze": "first"}, "--freeze first: give numbers of layers, such as 0-4"),
            ({"freeze": "1", "method": "bp"}, "--freeze 1 is for Forward-Forward"),
        ],
    )
    def test_mistakes(
        self, tiny_task: str, tmp_path: Path, options: dict[str, Any], sentence: str
    ):
        with refused(sentence):
            prepare(tiny_config(tiny_task, tmp_path / "run", **options), resume=False)

    def test_ranges_as_text(self):
        assert [as_ranges(each) for each in ([], [3], [0, 1, 2, 5], [1, 3, 4])] == [
            *("", "3", "0-2,5", "1,3-4")
        ]


class TestBest:
    def test_the_best_epochs_model_is_kept(self, tiny_task: str, tmp_path: Path):
        config = tiny_config(
            *(tiny_task, tmp_path / "run"),
            **{"epochs": 5, "keep_checkpoints": 9, "keep_best": True, "lr": 0.05},
        )
        records = train_locally(config).metrics
        best = max(records, key=lambda record: (record.valid_accuracy, -record.epoch))
        facts = json.loads((tmp_path / "run" / "best" / "best.json").read_text())
        assert facts == {
            "epoch": best.epoch,
            "valid_accuracy": best.valid_accuracy,
            "test_accuracy": best.test_accuracy,
        }
        folder = tmp_path / "run" / "best"
        kept = load_model(folder).state_dict()
        layers = weights(tmp_path / "run", best.epoch * BATCHES)
        for index in range(4):
            wanted = layers[f"layer-{index:03d}.safetensors"]["weight"]
            assert torch.equal(kept[f"chain.layers.{index}.weight"], wanted)
        with refused(f"{folder} is the best model of a run: name the run, {tmp_path}/run$"):
            read_run(folder)
        untouched = (folder / "model.safetensors").read_bytes()
        self.refuses_to_begin_anew(tiny_config(tiny_task, folder, epochs=9))
        assert (folder / "model.safetensors").read_bytes() == untouched
        shutil.rmtree(tmp_path / "run" / "checkpoints")  # to save space
        self.refuses_to_begin_anew(tiny_config(tiny_task, tmp_path / "run", epochs=9))

    def refuses_to_begin_anew(self, config: TrainConfig) -> None:
        with refused(f"{config.run_dir} has a trained model and no checkpoint to resume from: "):
            train_locally(config, resume=True)

    def test_a_process_that_ended_before_it_was_kept_is_made_up_for(
        self, tiny_task: str, tmp_path: Path
    ):
        """The checkpoint comes first, and a worse epoch would take the place of its model."""
        best = tmp_path / "run" / "best"

        def kept() -> dict[str, bytes]:
            return {file.name: file.read_bytes() for file in best.iterdir()}

        config = tiny_config(tiny_task, tmp_path / "run", epochs=2, keep_best=True)
        train_locally(config, StopAfter(BATCHES + 2))
        first = kept()
        shutil.rmtree(best)
        train_locally(config, StopAfter(1), resume=True)
        assert kept() == first
        whole = tiny_config(tiny_task, tmp_path / "whole", epochs=1, keep_best=True)
        train_locally(whole)
        best = tmp_path / "whole" / "best"
        first = kept()
        shutil.rmtree(best)
        Trainer(whole, backend="local", quiet=True).fit(resume=True)
        assert kept() == first


class TestPatience:
    def test_a_run_that_gets_no_better_ends_at_the_same_place_for_every_cut(
        self, tiny_task: str, tmp_path: Path
    ):
        never = {"lr": 0.0, "epochs": 9, "patience": 2}
        recording = RecordingCallback()
        result = train_locally(tiny_config(tiny_task, tmp_path / "a", **never), recording)
        assert result.complete
        assert [record.epoch for record in result.metrics] == [1, 2, 3]
        assert [line for line in recording.lines if line.startswith("warning")] == [
            "warning: no better validation accuracy for 2 epochs: the run ends after epoch 3; "
            f"best was {result.metrics[0].reached}"
        ]
        train_locally(tiny_config(tiny_task, tmp_path / "b", cuts=(1, 3), chunk=5, **never))
        assert layer_files(tmp_path / "a", 3 * BATCHES) == layer_files(tmp_path / "b")

    def test_a_run_with_a_copy_elsewhere_ends_there_too(self, tiny_task: str, tmp_path: Path):
        options = {"lr": 0.0, "epochs": 9, "patience": 1, "storage_path": str(tmp_path / "copy")}
        config = tiny_config(tiny_task, tmp_path / "run", **options)
        train_locally(config)
        files = layer_files(tmp_path / "run")
        again = train_locally(config, resume=True)
        assert again.complete
        assert [record.epoch for record in again.metrics] == [1, 2]
        assert layer_files(tmp_path / "run") == files

    def test_it_goes_on_only_with_more_patience(self, tiny_task: str, tmp_path: Path):
        never = {"lr": 0.0, "epochs": 9}
        train_locally(tiny_config(tiny_task, tmp_path / "run", patience=1, **never))
        again = train_locally(
            tiny_config(tiny_task, tmp_path / "run", patience=1, **never), resume=True
        )
        assert [record.epoch for record in again.metrics] == [1, 2]
        more = train_locally(
            tiny_config(tiny_task, tmp_path / "run", patience=3, **never), resume=True
        )
        assert [record.epoch for record in more.metrics] == [1, 2, 3, 4]
