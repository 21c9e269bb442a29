"""Local losses by name and by import path, trained by the autograd step."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rayff.config.errors import UserError
from rayff.config.local_loss import GOODNESS, LossConfig
from rayff.config.recipe import Recipe
from rayff.learning.autograd import autograd_step
from rayff.learning.generators import Share
from rayff.learning.layer import CWConv
from rayff.learning.layer_state import Layout, layer_state, restore_layer
from rayff.learning.losses import LOSSES, make_loss, try_loss
from rayff.learning.losses.goodness import Goodness
from rayff.learning.methods import build_network, layouts
from rayff.learning.optimizers import LayerOptimizer, optimizer_class
from rayff.models.architecture import LayerSpec
from rayff.models.zoo import architecture
from tests.helpers.layers import CPU
from tests.helpers.losses import LINEAR, SPREAD, LinearHead

SPEC = LayerSpec(index=7, in_channels=2, out_channels=4, kernel_size=3, in_size=6)
LABELS = torch.tensor([0, 1, 1])


def layer_with_head(seed: int = 0) -> CWConv:
    return CWConv(SPEC, 2, dropout=0.2, seed=seed, loss=LossConfig(name=LINEAR))


class TestRegistry:
    def test_the_default_is_goodness(self):
        assert "goodness" in LOSSES.names
        assert type(make_loss(GOODNESS, SPEC, 2)) is Goodness
        assert type(make_loss(LossConfig(name=LINEAR), SPEC, 2)) is LinearHead

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("goodnes", r"--loss: unknown local loss 'goodnes' \(did you mean 'goodness'\?\)"),
            (
                "tests.helpers.losses:LinearHed",
                r"--loss .*: tests.helpers.losses has no 'LinearHed' \(did you mean 'LinearHead'",
            ),
            ("tests.helpers.losses:function", "--loss .*:function is not a subclass of torch.nn"),
            ("tests.helpers.losses:LINEAR", "--loss .*:LINEAR is not a subclass of torch.nn"),
        ],
    )
    def test_another_name_is_refused(self, name: str, sentence: str):
        with pytest.raises(UserError, match=f"^{sentence}"):
            make_loss(LossConfig(name=name), SPEC, 2)


class TestLossWithParameters:
    def test_its_gradients_are_those_of_plain_autograd(self):
        layer, x = layer_with_head(), torch.randn(3, 2, 6, 6)
        state = layer.dropout_state(Share(step=0, batch_size=3), CPU)
        _, backward = autograd_step(layer, x, LABELS, 3, state)
        loss = backward()
        found = {name: parameter.grad for name, parameter in layer.named_parameters()}

        head = layer.loss.head
        logits = head(layer.activation(x, state).mean(dim=(2, 3)))
        expected = F.cross_entropy(logits, LABELS)
        parameters = dict(layer.named_parameters())
        gradients = torch.autograd.grad(expected, list(parameters.values()))
        assert [*parameters] == ["weight", "loss.head.weight", "loss.head.bias"]
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        for name, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(found[name], gradient)
            assert gradient.abs().max() > 0

    def test_shares_of_a_batch_add_up(self):
        layer, x = layer_with_head(), torch.randn(3, 2, 6, 6)

        def part(first: int, end: int) -> list[Tensor]:
            state = layer.dropout_state(Share(step=0, batch_size=3, first=first), CPU)
            _, backward = autograd_step(layer, x[first:end], LABELS[first:end], 3, state)
            return [backward(), *(parameter.grad.clone() for parameter in layer.parameters())]

        for whole, *shares in zip(part(0, 3), part(0, 2), part(2, 3), strict=True):
            torch.testing.assert_close(sum(shares), whole)

    def test_a_layer_learns_with_it(self):
        layer, x = layer_with_head(), torch.randn(3, 2, 6, 6)
        optimizer = optimizer_class("adamw")(layer.parameters(), Recipe(lr=0.05))
        losses = []
        for _ in range(20):
            losses.append(autograd_step(layer, x, LABELS, 3)[1]())
            optimizer.step()
        assert losses[-1] < losses[0] / 2
        logits = layer(x)[1]
        assert torch.equal(logits.argmax(dim=1), LABELS)

    def test_its_initial_parameters_follow_from_seed_and_layer_alone(self):
        first = layer_with_head().loss.head.weight
        untouched = torch.random.get_rng_state()
        torch.manual_seed(99)
        before = torch.random.get_rng_state()
        assert torch.equal(layer_with_head().loss.head.weight, first)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert not torch.equal(untouched, before)
        assert not torch.equal(layer_with_head(seed=1).loss.head.weight, first)
        other = LayerSpec(index=8, in_channels=2, out_channels=4, kernel_size=3, in_size=6)
        assert not torch.equal(
            CWConv(other, 2, loss=LossConfig(name=LINEAR)).loss.head.weight, first
        )

    def test_it_is_in_the_state_with_its_optimizers_moments(self):
        layer = layer_with_head()
        optimizer = optimizer_class("adamw")(layer.parameters(), Recipe())
        autograd_step(layer, torch.randn(3, 2, 6, 6), LABELS, 3)[1]()
        optimizer.step()
        moments = ("exp_avg", "exp_avg_sq", "step")
        assert sorted(layer_state(layer, optimizer)) == sorted(
            [
                *("weight", "loss.head.weight", "loss.head.bias"),
                *(f"optimizer.{name}" for name in moments),
                *(f"optimizer.loss.head.weight.{name}" for name in moments),
                *(f"optimizer.loss.head.bias.{name}" for name in moments),
            ]
        )

    def test_the_layers_of_a_network_give_the_shapes_of_their_parameters(self):
        network = architecture("tinycnn", num_classes=2, image_channels=1, width=2)
        held = layouts("ff", network, LossConfig(name=LINEAR))
        assert held[1].learned == {
            "weight": (4, 2, 5, 5),
            "loss.head.weight": (2, 4),
            "loss.head.bias": (2,),
        }
        assert layouts("ff", network, GOODNESS)[1] == Layout(learned={"weight": (4, 2, 5, 5)})

    def test_a_network_sums_its_logits(self):
        network = architecture("tinycnn", num_classes=2, image_channels=1, width=2)
        model = build_network(
            "ff", network, loss=LossConfig(name=LINEAR), window=(1, 2), class_names=("a", "b")
        )
        images = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
        assert torch.equal(model(images), model.logits(images)[1:3].sum(dim=0))


def test_logits_of_another_shape_are_refused():
    layer = CWConv(SPEC, 2, loss=LossConfig(name="tests.helpers.losses:WrongShape"))
    sentence = r"WrongShape returned logits of shape \(3, 1\), expected \(3, 2\)"
    with pytest.raises(ValueError, match=sentence):
        autograd_step(layer, torch.randn(3, 2, 6, 6), LABELS, 3)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "WrongShape",
            r"returned logits of shape \(2, 1\), expected \(2, 2\): return \(B, C\) logits",
        ),
        (
            "OfTheBatch",
            r"returned losses of shape \(\), expected \(2,\): return the loss of each image",
        ),
        (
            "Failing",
            r"--loss .*:Failing fails on the activation \(2, 4, 6, 6\) of layer 7: RuntimeError: "
            r"mat1 and mat2 shapes cannot be multiplied .*helpers/losses\.py, line \d+\)$",
        ),
        ("WithoutLogits", r"WithoutLogits returned Tensor: return logits \(B, C\) and losses"),
        ("Detached", "Detached has no gradient at the activation of layer 7, which would learn"),
        ("Apart", "Apart has no gradient at the activation of layer 7, which would learn nothing"),
        ("NoNumber", "NoNumber is nan on two random images in layer 7: look for"),
        ("NeedsLabels", r"fails on .*: TypeError: .*\(.*losses.py, line \d+\)$"),
    ],
)
def test_a_loss_that_breaks_its_contract_is_found_before_the_start(name: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        try_loss(LossConfig(name=f"tests.helpers.losses:{name}"), SPEC, 2)


@pytest.mark.parametrize("name", ["Centring", "CentringTheMap"])
def test_a_loss_that_replicas_would_change_is_found_before_the_start(name: str):
    config = LossConfig(name=f"tests.helpers.losses:{name}")
    try_loss(config, SPEC, 2)
    with pytest.raises(UserError, match=f"--replicas: what --loss .*{name} computes of an image"):
        try_loss(config, SPEC, 2, replicated=True)
    for kind in (LINEAR, SPREAD):
        try_loss(LossConfig(name=kind), SPEC, 2, replicated=True)


def test_trying_a_loss_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    try_loss(LossConfig(name=LINEAR), SPEC, 2)
    assert torch.equal(torch.get_rng_state(), before)


class Centred(LinearHead):
    """Logits around their running mean, a buffer."""

    def __init__(self, spec: LayerSpec, num_classes: int, config: LossConfig) -> None:
        super().__init__(spec, num_classes, config)
        self.register_buffer("mean", torch.zeros(num_classes))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)

    def forward(self, h: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits, losses = super().forward(h, labels)
        if self.training:
            self.mean += 0.1 * (logits.detach().mean(dim=0) - self.mean)
        return logits - self.mean, losses


def test_buffers_are_part_of_the_state():
    def make(seed: int) -> tuple[CWConv, LayerOptimizer]:
        layer = CWConv(SPEC, 2, seed=seed, loss=LossConfig(name=f"{__name__}:Centred"))
        return layer, optimizer_class("adamw")(layer.parameters(), Recipe(lr=0.05))

    layer, optimizer = make(0)
    for _ in range(3):
        autograd_step(layer, torch.randn(3, 2, 6, 6), LABELS, 3)[1]()
        optimizer.step()
    assert layer.loss.mean.abs().min() > 0
    state = {name: value.clone() for name, value in layer_state(layer, optimizer).items()}
    assert torch.equal(state["loss.mean"], layer.loss.mean)
    assert "loss.scratch" not in state
    assert Layout.of(layer).fixed == {"loss.mean": ((2,), torch.float32)}

    other, its_optimizer = make(1)
    restore_layer(7, other, its_optimizer, state)
    assert torch.equal(other.loss.mean, layer.loss.mean)
    assert torch.equal(
        other.eval()(torch.ones(3, 2, 6, 6))[1], layer.eval()(torch.ones(3, 2, 6, 6))[1]
    )


class Unsavable(LinearHead):
    def __init__(self, spec: LayerSpec, num_classes: int, config: LossConfig) -> None:
        super().__init__(spec, num_classes, config)
        self.register_buffer("mask", torch.full((2,), float("-inf")))


def test_buffers_that_a_checkpoint_refuses_are_found_before_the_start():
    sentence = "Unsavable: mask holds numbers that are not finite.*persistent=False"
    with pytest.raises(UserError, match=sentence):
        try_loss(LossConfig(name=f"{__name__}:Unsavable"), SPEC, 2)
