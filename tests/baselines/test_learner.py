"""Backpropagation in the loop, the run directory and the checkpoints of any other run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from rayff.baselines.learner import EndToEndLearner
from rayff.baselines.model import Backpropagation, EndToEnd
from rayff.config.errors import UserError
from rayff.config.recipe import Method
from rayff.config.train_config import TrainConfig
from rayff.engine.commands import Batch
from rayff.engine.evaluation import evaluate
from rayff.engine.learner import StageSpec
from rayff.engine.preparation import prepare
from rayff.engine.replicas import Replica
from rayff.learning.chain import Activations, normalise
from rayff.learning.generators import Share
from rayff.runs.run_directory import RunDirectory
from tests.engine.local_run import layer_files, timeless, train
from tests.helpers.tiny_task import write_tiny_task

CPU = torch.device("cpu")
METHODS: list[Method] = ["bp", "bp-deepsup"]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_task(tmp_path_factory.mktemp("task"))


def make_run(task: str, run_dir: Path, **options: Any) -> TrainConfig:
    usual: dict[str, Any] = {
        "arch": "tinycnn",
        "width": 4,
        "method": "bp",
        "epochs": 2,
        "batch_size": 40,
        "precision": "fp32",
    }
    return TrainConfig(task=task, run_dir=str(run_dir), **{**usual, **options})


@pytest.mark.parametrize("method", METHODS)
class TestARun:
    def test_leaves_what_every_run_leaves(self, task: str, tmp_path: Path, method: Method):
        run = make_run(task, tmp_path / "run", method=method)
        records, _ = train(run)
        classifiers = 1 if method == "bp" else 4
        assert [len(record.layer_loss) for record in records] == [classifiers, classifiers]
        assert records[1].train_loss < records[0].train_loss
        model = RunDirectory(tmp_path / "run").load_model()
        assert isinstance(model, EndToEnd)
        last = records[-1]
        assert model.window == (last.sip_first, last.sip_last)
        evaluation = evaluate(tmp_path / "run")
        assert evaluation.accuracy == pytest.approx(last.test_accuracy)
        assert evaluation.layer_accuracy == pytest.approx(last.layer_test_accuracy)

    @pytest.mark.parametrize("stop_after", [2, 4, 6])
    def test_that_was_stopped_anywhere_ends_with_the_same_bits(
        self, task: str, tmp_path: Path, method: Method, stop_after: int
    ):
        whole = make_run(task, tmp_path / "whole", method=method)
        parts = make_run(task, tmp_path / "parts", method=method)
        records, _ = train(whole)
        train(parts, stop_after=stop_after)
        resumed, _ = train(parts, resume=True)
        steps = records[-1].step
        assert layer_files(parts, steps) == layer_files(whole, steps)
        assert timeless(resumed) == timeless(records)

    def test_is_resumed_by_its_own_method_alone(self, task: str, tmp_path: Path, method: Method):
        train(make_run(task, tmp_path / "run", method=method, epochs=1))
        with pytest.raises(UserError, match=f"--method ff: the run was made with {method}"):
            prepare(make_run(task, tmp_path / "run", method="ff", epochs=1), resume=True)


def test_a_step_is_that_of_torchs_adamw_on_the_whole_network(task: str, tmp_path: Path):
    """The layers' own optimizers together are one for all of it."""
    run = make_run(task, tmp_path / "run", epochs=1, lr=0.01, lr_min=0.01, weight_decay=0.1)
    prepared = prepare(run, resume=False)
    train(run)
    network = Backpropagation(prepared.architecture, dropout=prepared.recipe.dropout)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), 0.01, weight_decay=0.1)
    images = prepared.splits["train"]
    first, second, third = (
        command.batches[0] for command in list(prepared.schedule(chunk=1).commands())[:3]
    )
    for step, indices in enumerate((first, second, third)):
        optimizer.zero_grad()
        x = normalise(torch.tensor(images.images[indices]))
        logits = network(x, Share(step=step, batch_size=len(indices)))[0]
        torch.nn.functional.cross_entropy(logits, torch.tensor(images.labels[indices])).backward()
        optimizer.step()
    saved = {
        f"layers.{index}.{name}": value
        for index, state in enumerate(sorted(layer_files(run, 3).items()))
        for name, value in load(state[1]).items()
        if not name.startswith("optimizer.")
    }
    assert saved.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.allclose(saved[name], value, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sizes", [(8, 2), (5, 3), (1, 2)])
def test_the_shares_of_workers_have_the_losses_and_gradients_of_the_batch(
    task: str, tmp_path: Path, method: Method, sizes: tuple[int, int]
):
    """DDP takes the mean of the workers' gradients; a worker may have no images."""
    prepared = prepare(make_run(task, tmp_path / "run", method=method, dropout=0.25), resume=False)
    images, count = sizes
    generator = np.random.default_rng(0)
    x = torch.tensor(generator.normal(size=(images, 3, 32, 32)), dtype=torch.float32)
    labels = torch.tensor(generator.integers(0, 3, images))

    def part(replica: Replica) -> tuple[list[float], list[torch.Tensor]]:
        spec = StageSpec(
            architecture=prepared.architecture,
            is_last=True,
            recipe=prepared.recipe,
            seed=0,
            precision="fp32",
            replica=replica,
        )
        learner = EndToEndLearner(spec, method, CPU)
        gradients: list[torch.Tensor] = []
        learner.network.zero_grad = lambda: gradients.extend(  # type: ignore[method-assign]
            parameter.grad.clone() for parameter in learner.network.parameters()
        )
        rows = replica.rows(images)
        batch = Batch(
            activations=Activations(features=x[rows.start : rows.stop]),
            labels=labels[rows.start : rows.stop],
        )
        share = Share(step=3, batch_size=images, first=rows.start)
        _, losses = learner.learn(batch, share)
        return [float(loss) for loss in losses], gradients

    losses, gradients = part(Replica())
    parts = [part(Replica(index=index, count=count)) for index in range(count)]
    assert np.sum([own for own, _ in parts], axis=0) == pytest.approx(losses, rel=1e-5)
    for whole, *shares in zip(gradients, *(own for _, own in parts), strict=True):
        assert torch.allclose(torch.stack(shares).mean(dim=0), whole, rtol=1e-3, atol=1e-6)


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"method": "ff", "workers": 2}, "--workers 2 is for --method bp"),
            ({"stages": 2}, "--stages 2 is for Forward-Forward: --method bp has the whole"),
            ({"cuts": (1, 3)}, "--cuts 1,3 is for Forward-Forward"),
            ({"kernels": "conv"}, "--kernels conv is for Forward-Forward"),
            ({"rule": "plain"}, "--rule plain is for Forward-Forward"),
            ({"transport": "gloo"}, "--transport gloo is for Forward-Forward"),
            ({"rebalance": True}, "--rebalance True is for Forward-Forward"),
            ({"workers": 41}, "--workers 41 cannot share a batch of 40"),
        ],
    )
    def test_an_option_of_the_other_method_is_named(
        self, task: str, tmp_path: Path, options: dict[str, Any], sentence: str
    ):
        with pytest.raises(UserError, match=sentence):
            prepare(make_run(task, tmp_path / "run", **options), resume=False)
        assert not (tmp_path / "run").exists()


class TestChangingOneWord:
    def test_another_method_has_its_own_learning_rates(self, task: str, tmp_path: Path):
        made = make_run(task, tmp_path / "a", method="ff", stages=2, kernels="conv", epochs=7)
        saved = made.resolved({})
        assert saved.lr == 0.08
        asked = saved.overridden(TrainConfig.from_dict({**saved.to_dict(), "method": "bp"}))
        assert (asked.lr, asked.lr_min, asked.stages, asked.kernels) == (None,) * 4
        assert (asked.resolved({}).lr, asked.epochs) == (0.001, 7)

    def test_what_is_said_beside_it_counts(self, task: str, tmp_path: Path):
        saved = make_run(task, tmp_path / "a", method="ff").resolved({})
        other = TrainConfig.from_dict({**saved.to_dict(), "method": "bp", "lr": 0.5, "workers": 3})
        asked = saved.overridden(other)
        assert (asked.lr, asked.workers) == (0.5, 3)
