"""Whole runs of networks of modules: resumed, loaded, evaluated, planned and refused."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rayff import TrainConfig, Trainer, load_model
from rayff.config.errors import UserError
from rayff.engine.evaluation import evaluate
from rayff.engine.prediction import predict
from rayff.engine.preparation import prepare
from rayff.learning.chain import Activations, normalise
from rayff.report.figures_predictions import filter_picture
from rayff.report.page import Note
from rayff.report.reader import read_run
from tests.helpers import modules
from tests.helpers.mistakes import refused
from tests.helpers.modules import HERE
from tests.helpers.runs import StopAfter, layer_files, timeless, train_locally
from tests.helpers.tiny_task import BATCHES, tiny_config

LAST = 2 * BATCHES


class Upright(modules.Dense):
    """A layer with the parameters of another one, and more features."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).repeat(1, 2)


EVERY_KIND = modules.every_kind
MODULES: dict[str, Any] = {"arch": f"{HERE}:every_kind", "loss": "predsim"}


def config_of(task: str, run_dir: Path, **changes: Any) -> TrainConfig:
    return tiny_config(task, run_dir, **{**MODULES, **changes})


@pytest.fixture(scope="module")
def run_dir(tiny_task: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    run_dir = tmp_path_factory.mktemp("modules") / "run"
    train_locally(config_of(tiny_task, run_dir))
    return run_dir


@pytest.mark.parametrize("chunks", [1, 4, 5, 8])
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(
    tiny_task: str, run_dir: Path, tmp_path: Path, chunks: int
) -> None:
    config = config_of(tiny_task, tmp_path / "run", cuts=(2,))
    train_locally(config, StopAfter(chunks))
    moved = TrainConfig(**{**config.to_dict(), "cuts": (1, 3), "chunk": 2})
    result = train_locally(moved, resume=True)
    assert layer_files(tmp_path / "run", LAST) == layer_files(run_dir, LAST)
    assert timeless(result.metrics) == timeless(read_run(run_dir).records)


def test_a_checkpoint_has_the_buffers_of_each_layer_in_its_file(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / f"step-{LAST:08d}"
    state = load_file(folder / "layer-000.safetensors")
    assert state["module.norm.num_batches_tracked"].tolist() == LAST
    assert state["module.norm.running_var"].shape == (4,)
    assert "loss.head.weight" in state
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["architecture"]["source"] == {
        "function": MODULES["arch"],
        "image_channels": 3,
        "image_size": 32,
        "width": 4,
    }


def test_a_loaded_model_gives_the_logits_of_the_run(run_dir: Path) -> None:
    model = load_model(run_dir)
    saved = load_file(run_dir / "model.safetensors")
    assert saved["layers.0.module.norm.num_batches_tracked"].dtype == torch.int64
    chain = model.get_submodule("chain")
    for name, value in chain.state_dict().items():
        assert torch.equal(value, saved[name]), name
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    activations = Activations(features=normalise(images, model.chain.dtype))  # type: ignore[union-attr, arg-type]
    _, expected = model.chain.evaluate(activations)  # type: ignore[union-attr, operator]
    assert torch.equal(model.logits(images), torch.stack(expected))
    # running statistics: an image is classified alike whatever is beside it
    torch.testing.assert_close(model.logits(images[:1]), model.logits(images)[:, :1])


def test_its_evaluation_is_that_of_the_run(run_dir: Path) -> None:
    last = read_run(run_dir).last
    found = evaluate(run_dir)
    assert found.accuracy == pytest.approx(last.test_accuracy)
    assert found.layer_accuracy == pytest.approx(last.layer_test_accuracy)


def test_single_images_are_predicted(run_dir: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32), (9, 90, 200)).save(tmp_path / "one.png")
    (found,) = predict(load_model(run_dir), [str(tmp_path / "one.png")], 0.999)
    assert found.layers == 5
    assert 0 < found.probability <= 1


def test_the_report_draws_filters_of_images_alone(run_dir: Path, tmp_path: Path) -> None:
    assert not isinstance(filter_picture(read_run(run_dir)), Note)


def test_without_its_code_a_model_is_not_called_damaged(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(modules, "every_kind")
    with refused(rf"needs your code: --arch {HERE}:every_kind: .* has no 'every_kind'", run_dir):
        load_model(run_dir)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda **options: [torch.nn.Flatten], "needs your code: --arch .* makes 1 layer here"),
        (
            lambda **options: modules.per_image(**{**options, "width": 2}) * 2,
            "is damaged: weights and description differ in .*, or the code of .* has changed",
        ),
        (
            lambda **options: [
                *EVERY_KIND(**options)[:4],
                modules.ModuleRow(partial(Upright, 24, 8), modules.Flat),
            ],
            "needs your code: --arch .* does not classify an image with the saved shapes",
        ),
    ],
    ids=["fewer layers", "other parameters", "another output"],
)
def test_with_other_code_a_model_is_refused(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, change: Any, sentence: str
) -> None:
    monkeypatch.setattr(modules, "every_kind", change)
    with refused(sentence, run_dir):
        load_model(run_dir)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rule": "fast"}, "--rule fast: the fast rule trains convolutions, and the layers of"),
        ({"kernels": "conv"}, "--kernels conv: the fast rule .* are modules: leave --kernels out"),
        ({"autotune": True}, "--autotune: the fast rule .* are modules: leave --autotune out"),
        (
            {"method": "bp", "loss": "goodness"},
            "--method bp trains networks of convolutions, and the layers of --arch .* are modules",
        ),
        ({"replicas": "1,2"}, r"--replicas: layer 0 of --arch .* has a BatchNorm2d"),
        ({"replicas": "auto"}, r"--replicas: layer 0 of --arch .* has a BatchNorm2d"),
        ({"loss": "goodness", "width": 6}, "do not split into 4 equal groups.*--loss linear"),
        ({"arch": f"{HERE}:fits_not"}, r"layer 1 of --arch .*\(Conv2d\) cannot take the shape"),
        ({"arch": f"{HERE}:in_place"}, r"\(InPlace\) changes its input in place"),
        ({"arch": "vgg8b", "batch_size": 95}, "the last batch of an epoch has 1 image"),
        ({"arch": "vgg8c"}, r"unknown architecture 'vgg8c' \(did you mean 'vgg8b'\?\)"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_the_start(
    tiny_task: str, tmp_path: Path, options: dict[str, Any], match: str
) -> None:
    with refused(match, tmp_path):
        prepare(config_of(tiny_task, tmp_path / "run", **options), resume=False)


def test_a_resumption_with_other_modules_is_refused(
    tiny_task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_task, tmp_path / "run", epochs=1)
    train_locally(config)
    monkeypatch.setattr(modules, "every_kind", modules.per_image)
    with refused("is a checkpoint of another architecture", tmp_path):
        prepare(config, resume=True)


def test_the_plain_rule_is_written_into_the_run(run_dir: Path) -> None:
    config = json.loads((run_dir / "config.json").read_text())
    assert (config["rule"], config["kernels"]) == ("plain", None)


def test_training_diverges_in_a_sentence(tiny_task: str, tmp_path: Path) -> None:
    config = config_of(tiny_task, tmp_path / "run", arch=f"{HERE}:per_image", loss="linear")
    wild = TrainConfig(**{**config.to_dict(), "lr": 1e30, "optimizer": "sgd"})
    with pytest.raises(UserError, match=r"the loss of layer \d became (nan|inf) at step \d"):
        Trainer(wild, backend="local", quiet=True).fit()
