"""Backpropagation in the loop, the run directory and the checkpoints of any other run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from rayff import TrainConfig, load_model
from rayff.baselines.learner import EndToEndLearner
from rayff.baselines.model import Backpropagation, EndToEndNetwork
from rayff.config.errors import UserError
from rayff.config.kernels import Kernels
from rayff.config.recipe import Method
from rayff.engine.commands import Batch, Train
from rayff.engine.evaluation import evaluate
from rayff.engine.learner import StageSpec
from rayff.engine.preparation import prepare
from rayff.engine.replicas import Replica
from rayff.engine.run import PreparedRun
from rayff.learning.chain import Activations, normalise
from rayff.learning.generators import Share
from tests.helpers.augmentations import by_image
from tests.helpers.layers import CPU
from tests.helpers.runs import StopAfter, layer_files, timeless, train_locally
from tests.helpers.tiny_task import write_tiny_task

METHODS: list[Method] = ["bp", "bp-deepsup"]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_task(tmp_path_factory.mktemp("task"))


def make_config(task: str, run_dir: Path, **options: Any) -> TrainConfig:
    usual = {"arch": "tinycnn", "width": 4, "method": "bp", "epochs": 2, "batch_size": 40}
    return TrainConfig(task=task, run_dir=str(run_dir), **{**usual, **options})


@pytest.mark.parametrize("method", METHODS)
class TestRun:
    def test_it_leaves_metrics_and_a_model(self, task: str, tmp_path: Path, method: Method):
        first, last = train_locally(make_config(task, tmp_path / "run", method=method)).metrics
        classifiers = 1 if method == "bp" else 4
        assert [len(record.layer_loss) for record in (first, last)] == [classifiers] * 2
        assert last.train_loss < first.train_loss
        model = load_model(tmp_path / "run")
        assert isinstance(model, EndToEndNetwork)
        assert model.window == (last.sip_first, last.sip_last)
        evaluation = evaluate(tmp_path / "run")
        assert evaluation.accuracy == pytest.approx(last.test_accuracy)
        assert evaluation.layer_accuracy == pytest.approx(last.layer_test_accuracy)
        assert evaluation.calibrated
        found = {name: score.accuracy for name, score in evaluation.readouts.items()}
        assert found == pytest.approx(last.readouts)
        if method == "bp":  # there is one classifier
            assert found.keys() == {"window", "last"}
            assert found["window"] == found["last"]
            assert model.temperatures == (model.last_temperature,)
        else:
            assert found.keys() == {"window", "last", "fusion"}

    @pytest.mark.parametrize("stop_after", [2, 4, 6])
    def test_stopped_anywhere_it_ends_with_the_same_bits(
        self, task: str, tmp_path: Path, method: Method, stop_after: int
    ):
        whole = train_locally(make_config(task, tmp_path / "whole", method=method))
        parts = make_config(task, tmp_path / "parts", method=method)
        assert not train_locally(parts, StopAfter(stop_after)).complete
        resumed = train_locally(parts, resume=True)
        assert layer_files(resumed.run_dir) == layer_files(whole.run_dir)
        assert timeless(resumed.metrics) == timeless(whole.metrics)

    def test_another_method_cannot_resume_it(self, task: str, tmp_path: Path, method: Method):
        train_locally(make_config(task, tmp_path / "run", method=method, epochs=1))
        with pytest.raises(UserError, match=f"--method ff: the run was made with {method}"):
            prepare(make_config(task, tmp_path / "run", method="ff", epochs=1), resume=True)


@pytest.mark.parametrize("augment", ["none", "crop:4,flip,cutout:8,translate:2"])
def test_a_step_is_that_of_torchs_adamw_on_the_whole_network(
    task: str, tmp_path: Path, augment: str
):
    """The layers' own optimizers together are one for all of it."""
    usual = {"epochs": 1, "lr": 0.01, "lr_min": 0.01, "weight_decay": 0.1, "seed": 3}
    config = make_config(task, tmp_path / "run", augment=augment, **usual)
    prepared = prepare(config, resume=False)
    train_locally(config)
    network = Backpropagation(prepared.architecture, dropout=prepared.recipe.dropout, seed=3)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), 0.01, weight_decay=0.1)
    images = prepared.splits["train"]
    commands = list(prepared.schedule(chunk=1).commands())
    for step, indices in enumerate(command.batches[0] for command in commands[:3]):
        optimizer.zero_grad()
        pixels = images.images[indices]
        if augment != "none":
            pixels = by_image(pixels, augment, seed=3, step=step)
        x = normalise(torch.tensor(pixels))
        logits = network(x, Share(step=step, batch_size=len(indices)))[0]
        torch.nn.functional.cross_entropy(logits, torch.tensor(images.labels[indices])).backward()
        optimizer.step()
    saved = {
        f"layers.{index}.{name}": value
        for index, (_, file) in enumerate(sorted(layer_files(config.run_dir, 3).items()))
        for name, value in load(file).items()
        if not name.startswith("optimizer.")
    }
    assert saved.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.allclose(saved[name], value, rtol=1e-4, atol=1e-6), name


def test_a_recipe_trains_the_network_as_torchs_own_parts_do(task: str, tmp_path: Path):
    """Warm-up, steps, and the gradient of the whole network clipped, three batches an epoch."""
    config = make_config(
        *(task, tmp_path / "run"),
        **{"epochs": 2, "lr": 0.02, "lr_schedule": "step", "lr_steps": (0.5,), "lr_decay": 0.1},
        **{"warmup_epochs": 1, "clip_norm": 0.1, "optimizer": "sgd", "weight_decay": 0.01},
    )
    prepared = prepare(config, resume=False)
    train_locally(config)
    network = Backpropagation(prepared.architecture, dropout=prepared.recipe.dropout)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9, weight_decay=0.01)
    images, norms = prepared.splits["train"], []
    commands = [c for c in prepared.schedule(chunk=1).commands() if isinstance(c, Train)]
    rates = (0.02 / 3, 0.04 / 3, 0.02, 0.002, 0.002, 0.002)
    for step, (command, lr) in enumerate(zip(commands, rates, strict=True)):
        (indices,) = command.batches
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = lr
        x = normalise(torch.tensor(images.images[indices]))
        logits = network(x, Share(step=step, batch_size=len(indices)))[0]
        torch.nn.functional.cross_entropy(logits, torch.tensor(images.labels[indices])).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1).item())
        optimizer.step()
    assert min(norms) > 0.2, "or nothing is clipped"
    saved = {
        f"layers.{index}.{name}": value
        for index, (_, file) in enumerate(sorted(layer_files(config.run_dir, 6).items()))
        for name, value in load(file).items()
        if not name.startswith("optimizer.")
    }
    for name, value in network.state_dict().items():
        # an activation at zero may turn by rounding; the path is ten times as long at least
        assert torch.allclose(saved[name], value, rtol=1e-4, atol=1e-5), name
        assert (value - before[name]).abs().max() > 1e-4, name


@pytest.mark.parametrize("method", METHODS)
def test_muon_trains_it_and_is_resumed(task: str, tmp_path: Path, method: Method):
    how: dict[str, Any] = {"method": method, "optimizer": "muon", "clip_norm": 0.5}
    whole = train_locally(make_config(task, tmp_path / "whole", **how))
    parts = make_config(task, tmp_path / "parts", **how)
    train_locally(parts, StopAfter(3))
    resumed = train_locally(parts, resume=True)
    assert layer_files(resumed.run_dir) == layer_files(whole.run_dir)
    assert whole.metrics[-1].train_loss < whole.metrics[0].train_loss


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(8, 2), (5, 3), (1, 2)])
def test_shares_of_workers_have_the_losses_and_gradients_of_the_batch(
    task: str, tmp_path: Path, method: Method, sizes: tuple[int, int]
):
    """DDP takes the mean of the workers' gradients; a worker may have no images."""
    config = make_config(task, tmp_path / "run", method=method, dropout=0.25)
    prepared = prepare(config, resume=False)
    images, count = sizes
    generator = np.random.default_rng(0)
    x = torch.tensor(generator.normal(size=(images, 3, 32, 32)), dtype=torch.float32)
    labels = torch.tensor(generator.integers(0, 3, images))

    def part(replica: Replica) -> tuple[list[float], list[torch.Tensor]]:
        rows = replica.rows(images)
        batch = Batch(
            activations=Activations(features=x[rows.start : rows.stop]),
            labels=labels[rows.start : rows.stop],
        )
        return learn(prepared, replica, batch, images)

    losses, gradients = part(Replica())
    parts = [part(Replica(index=index, count=count)) for index in range(count)]
    assert np.sum([own for own, _ in parts], axis=0) == pytest.approx(losses, rel=1e-5)
    for whole, *shares in zip(gradients, *(own for _, own in parts), strict=True):
        assert torch.allclose(torch.stack(shares).mean(dim=0), whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("options", [{"checkpointing": True}, {"accumulation": 3}], ids=str)
def test_ways_to_save_memory_change_no_gradient(
    task: str, tmp_path: Path, options: dict[str, Any]
):
    prepared = prepare(make_config(task, tmp_path / "run"), resume=False)
    pixels = torch.randint(0, 256, (8, *prepared.architecture.image_shape), dtype=torch.uint8)
    batch = Batch(activations=Activations(features=normalise(pixels)), labels=torch.arange(8) % 2)
    losses, plain = learn(prepared, Replica(), batch, 8)
    saved_losses, saving = learn(prepared, Replica(), batch, 8, **options)
    assert saved_losses == pytest.approx(losses)
    for one, other in zip(plain, saving, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def learn(
    prepared: PreparedRun, replica: Replica, batch: Batch, images: int, **options: Any
) -> tuple[list[float], list[torch.Tensor]]:
    """Return the losses and gradients of a worker's share of a batch."""
    spec = StageSpec(
        architecture=prepared.architecture,
        is_last=True,
        config=prepared.resolve("fp32", (Kernels(),)).resolved,
        replica=replica,
    )
    learner = EndToEndLearner(spec, CPU, **options)
    gradients: list[torch.Tensor] = []
    learner.network.zero_grad = lambda: gradients.extend(  # type: ignore[method-assign]
        parameter.grad.clone() for parameter in learner.network.parameters()
    )
    share = Share(step=3, batch_size=images, first=replica.rows(images).start)
    _, losses = learner.learn(batch, share)
    return [float(loss) for loss in losses], gradients


def test_an_option_of_forward_forward_leaves_no_run_directory(task: str, tmp_path: Path):
    with pytest.raises(UserError, match="--stages 2 is for Forward-Forward"):
        prepare(make_config(task, tmp_path / "run", stages=2), resume=False)
    assert not (tmp_path / "run").exists()
