"""The network of backpropagation: heads, gradients, checkpointing, the trained network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rayff.baselines.model import Backpropagation, EndToEndNetwork, blocks
from rayff.config.recipe import Method
from rayff.learning.chain import Chain, normalise
from rayff.learning.generators import Share
from rayff.learning.methods import layouts, num_classifiers
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture


def narrow(name: str) -> Architecture:
    return architecture(name, num_classes=2, image_channels=3, width=4)


def parameters(network: Backpropagation) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.named_parameters()}


@pytest.mark.parametrize("arch", ["resnet", "vgg", "tinycnn"])
@pytest.mark.parametrize("method", ["bp", "bp-deepsup"])
def test_parameters_and_logits_have_the_shapes_of_the_method(arch: str, method: Method):
    spec = narrow(arch)
    network = Backpropagation(spec, deep_supervision=method == "bp-deepsup")
    assert parameters(network) == {
        f"layers.{index}.{name}": shape
        for index, own in layouts(method, spec, "goodness").items()
        for name, shape in own.learned.items()
    }
    logits = network(torch.randn(3, 3, 32, 32))
    assert logits.shape == (num_classifiers(method, spec), 3, 2)


def test_initial_weights_are_those_of_forward_forward_and_heads_follow_from_the_seed():
    spec = narrow("resnet")
    one, same, other = (
        Backpropagation(spec, seed=seed, deep_supervision=True) for seed in (3, 3, 4)
    )
    for own, layer in zip(one.parts(), Chain.build(spec, seed=3).parts(), strict=True):
        assert torch.equal(own.weight, layer.weight)
    heads = [[part.head.weight for part in n.parts()] for n in (one, same, other)]
    assert all(torch.equal(a, b) for a, b in zip(heads[0], heads[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(heads[0], heads[2], strict=True))


def test_the_gradients_are_those_of_the_network_written_out():
    spec = narrow("tinycnn")
    network = Backpropagation(spec, seed=1).double()
    x, labels = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    w = [part.weight.detach().clone().requires_grad_() for part in network.parts()]
    head = network.parts()[3].head
    head.float()  # logits are float32 whatever the features are
    h = F.group_norm(F.relu(F.conv2d(x, w[0], padding=2)), 2)
    h = F.group_norm(F.relu(F.conv2d(F.avg_pool2d(h, 2), w[1], padding=2)), 2)
    h = F.group_norm(F.relu(F.conv2d(F.avg_pool2d(h, 2), w[2], padding=1)), 2)
    h = F.group_norm(F.relu(F.conv2d(h, w[3], padding=1)), 2)
    F.cross_entropy(head(h.mean(dim=(2, 3)).float()), labels).backward()
    expected = [weight.grad for weight in w]
    network.zero_grad()
    F.cross_entropy(network(x)[0], labels).backward()
    for part, gradient in zip(network.parts(), expected, strict=True):
        assert torch.allclose(part.weight.grad, gradient, rtol=1e-12, atol=1e-14)


class TestDropout:
    def test_of_two_shares_is_that_of_the_batch(self):
        network = Backpropagation(narrow("tinycnn"), dropout=0.5).train()
        x = torch.randn(6, 3, 32, 32)
        whole = network(x, Share(step=7, batch_size=6))
        parts = [
            network(x[rows], Share(step=7, batch_size=6, first=rows.start))
            for rows in (slice(0, 4), slice(4, 6))
        ]
        assert torch.allclose(torch.cat(parts, dim=1), whole, atol=1e-5)
        other = network(x, Share(step=8, batch_size=6))
        assert not torch.allclose(other, whole, atol=1e-2)

    def test_is_off_in_evaluation(self):
        network = Backpropagation(narrow("tinycnn"), dropout=0.5).eval()
        x, share = torch.randn(2, 3, 32, 32), Share(step=0, batch_size=2)
        assert torch.equal(network(x, share), network(x))


class TestCheckpointing:
    @pytest.mark.parametrize("deep_supervision", [False, True])
    def test_changes_no_gradient(self, deep_supervision: bool):
        network = Backpropagation(narrow("resnet"), deep_supervision=deep_supervision)
        x, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
        gradients = []
        for network.checkpointing in (False, True):
            network.zero_grad()
            sum(F.cross_entropy(logits, labels) for logits in network(x)).backward()
            gradients.append([part.weight.grad.clone() for part in network.parts()])
        assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
        assert all(gradient.abs().max() > 0 for gradient in gradients[0])

    def test_blocks_are_those_of_the_shortcuts(self):
        assert list(blocks(narrow("resnet"))) == [
            *([0], *([n, n + 1] for n in range(1, 15, 2)), [15], [16])
        ]
        vgg = architecture("vgg", num_classes=10, image_channels=3)
        assert list(blocks(vgg)) == [[layer] for layer in range(14)]


class TestTrained:
    @pytest.fixture
    def images(self) -> Tensor:
        return torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)

    def test_logits_are_summed_over_the_window_of_heads(self, images: Tensor):
        network = Backpropagation(narrow("resnet"), deep_supervision=True).eval()
        model = EndToEndNetwork(network, (2, 5), ("no", "yes"))
        logits = network(normalise(images))
        assert torch.allclose(model(images), logits[2:6].sum(dim=0))
        assert (model.num_classifiers, model.depth) == (17, 6)

    def test_one_head_needs_all_layers(self, images: Tensor):
        model = EndToEndNetwork(Backpropagation(narrow("tinycnn")).eval(), (0, 0), ("no", "yes"))
        assert (model.num_classifiers, model.depth) == (1, 4)
        probabilities, layers = model.early_exit(images, 0.5)
        assert layers.tolist() == [4] * 5
        assert torch.allclose(probabilities, model(images).softmax(dim=1))

    def test_early_exit_stops_at_the_first_head_over_the_threshold(self, images: Tensor):
        network = Backpropagation(narrow("tinycnn"), deep_supervision=True).eval()
        model = EndToEndNetwork(network, (1, 3), ("no", "yes"))
        logits = network(normalise(images))
        assert model.early_exit(images, 0.5)[1].tolist() == [2] * 5
        probabilities, layers = model.early_exit(images, 1.0)
        assert layers.tolist() == [4] * 5
        assert torch.allclose(probabilities, logits[1:].sum(dim=0).softmax(dim=1), atol=1e-6)

    def test_features_are_what_a_head_sees_and_forward_hooks_fire(self, images: Tensor):
        model = EndToEndNetwork(
            Backpropagation(narrow("resnet"), deep_supervision=True), (0, 16), ("no", "yes")
        )
        names: list[str] = []
        for name, module in model.named_modules():
            if module in [*model.layers]:
                module.register_forward_hook(lambda *_, name=name: names.append(name))
        logits = model.logits(images)
        assert names == [f"network.layers.{layer}" for layer in range(17)]
        for layer, module in enumerate(model.layers):
            found = module.head(model.features(images, layer).mean(dim=(2, 3)))
            assert torch.allclose(found, logits[layer], atol=1e-6)
