"""The trained network: windows of layers, early exit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rayff.config.errors import UserError
from rayff.learning.chain import Activations, Chain, normalise
from rayff.learning.fusion import Fusion
from rayff.learning.network import LocalNetwork
from rayff.learning.readout import Readouts, Temperatures
from rayff.models.architecture import Architecture
from rayff.models.zoo import Row, architecture, chain

CLASSES = ("no", "yes")


def narrow(name: str, width: int = 4) -> Architecture:
    return architecture(name, num_classes=2, image_channels=3, width=width)


def pixels(batch: int = 2) -> Tensor:
    return torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8)


class TestWindow:
    @pytest.mark.parametrize("window", [(0, 0), (0, 3), (1, 2), (3, 3)])
    def test_logits_are_summed_over_the_window(self, window: tuple[int, int]):
        layers, images = Chain.build(narrow("tinycnn")), pixels(3)
        _, each = layers.evaluate(Activations(features=normalise(images)))
        first, last = window
        expected = sum(logits.double() for logits in each[first : last + 1])
        model = LocalNetwork(layers, window, CLASSES)
        np.testing.assert_allclose(model(images), expected, rtol=1e-5)
        assert not model(images).requires_grad
        assert (model.class_names, model.depth, model.num_classifiers) == (CLASSES, last + 1, 4)

    def test_layers_after_the_window_are_not_computed(self):
        layers, images = Chain.build(narrow("tinycnn")), pixels(3)
        model = LocalNetwork(layers, (0, 3), CLASSES)
        whole = model.logits(images)
        assert whole.shape == (4, 3, 2)
        layers.parts()[2].register_forward_hook(lambda *_: pytest.fail("not needed"))
        assert torch.equal(model.logits(images, 2), whole[:2])
        assert torch.equal(LocalNetwork(layers, (1, 1), CLASSES)(images), whole[1])

    def test_layers_after_the_window_may_be_missing(self):
        network, images = narrow("resnet", 2), pixels()
        whole = LocalNetwork(Chain.build(network), (1, 5), CLASSES)
        pruned = LocalNetwork(Chain.build(network[:6]), (1, 5), CLASSES)
        assert torch.equal(pruned(images), whole(images))


class TestReadouts:
    """Of four layers and two classes."""

    TEMPERATURES = Temperatures(window=(2.0, 0.5), last=4.0)

    @pytest.fixture
    def model(self) -> LocalNetwork:
        model = LocalNetwork(Chain.build(narrow("tinycnn")), (0, 3), CLASSES)
        generator = np.random.default_rng(0)
        fusion = Fusion(
            weight=generator.normal(size=(2, 8)).astype(np.float32),
            bias=generator.normal(size=2).astype(np.float32),
        )
        model.load_readouts(Readouts(window=(1, 2), temperatures=self.TEMPERATURES, fusion=fusion))
        return model

    def test_each_gives_its_logits_and_its_probabilities(self, model: LocalNetwork) -> None:
        images = pixels(3)
        logits = model.logits(images).double()
        assert model.fusion is not None
        weight, bias = model.fusion.weight.double(), model.fusion.bias.double()
        fused = sum(logits[k] @ weight[:, 2 * k : 2 * k + 2].T for k in range(4)) + bias
        for name, expected, temperature, depth in (
            ("window", logits[1] + logits[2], 0.5, 3),
            ("last", logits[3], 4.0, 4),
            ("fusion", fused, 1.0, 4),
        ):
            model.readout = name
            assert model.readout == name
            assert model.temperature == temperature
            assert model.depth == depth
            np.testing.assert_allclose(model(images), expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(
                model.probabilities(images), (expected / temperature).softmax(1), rtol=1e-5
            )
            assert not model(images).requires_grad

    def test_the_window_is_the_default_and_needs_no_deeper_layer(
        self, model: LocalNetwork
    ) -> None:
        assert model.readout == "window"
        assert model.calibrated
        model.chain.parts()[3].register_forward_hook(lambda *_: pytest.fail("not needed"))
        model.probabilities(pixels())

    def test_without_temperatures_they_are_one(self) -> None:
        model = LocalNetwork(Chain.build(narrow("tinycnn")), (1, 3), CLASSES)
        assert not model.calibrated
        assert (model.temperatures, model.last_temperature) == ((1.0,) * 3, 1.0)
        assert model.readouts == ("window", "last")
        images = pixels()
        assert torch.equal(model.probabilities(images), model(images).softmax(1))

    def test_an_unknown_one_or_a_fusion_that_is_missing_is_refused(
        self, model: LocalNetwork
    ) -> None:
        with pytest.raises(UserError, match="unknown readout 'fused'.*known are window, last, f"):
            model.readout = "fused"  # type: ignore[assignment]
        assert model.readouts == ("window", "last", "fusion")
        model.load_readouts(Readouts(window=(0, 0)))
        with pytest.raises(UserError, match="this model has no readout fusion: it is fitted at"):
            model.readout = "fusion"
        assert model.readout == "window"

    def test_early_exit_uses_the_temperature_of_each_depth(self, model: LocalNetwork) -> None:
        images = pixels(5)
        logits = model.logits(images)
        first, both = (logits[1] / 2.0).softmax(1), ((logits[1] + logits[2]) / 0.5).softmax(1)
        for threshold, expected, layers in ((1e-9, first, 2), (1.1, both, 3)):
            probabilities, computed = model.early_exit(images, threshold)
            np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
            assert computed.tolist() == [layers] * 5
        reached = float(first[0].max())
        assert model.early_exit(images[:1], reached * 0.999)[1] == 2
        assert model.early_exit(images[:1], reached * 1.001)[1] == 3

    @pytest.mark.parametrize("name", ["last", "fusion"])
    def test_early_exit_is_of_the_window(self, model: LocalNetwork, name: str) -> None:
        model.readout = name  # type: ignore[assignment]
        with pytest.raises(UserError, match=f"early exit needs the readout window, not {name}"):
            model.early_exit(pixels(1), 0.9)

    def test_it_moves_and_is_saved_with_the_model(self, model: LocalNetwork) -> None:
        state = model.state_dict()
        assert [name for name in state if "fusion" in name] == ["fusion.weight", "fusion.bias"]
        model.double().readout = "fusion"
        assert model.fusion is not None
        assert model.fusion.weight.dtype == torch.float64


class TestEarlyExit:
    """Three 1x1 layers whose goodness is known.

    Half of the image is dark and half is bright, so it enters as -1 and +1. A weight a > 0 makes
    of that 0 and a, whose mean is a / 2, and the norm makes -1 and +1 again.
    """

    GOODNESS = ((1.0, 0.5), (1.5, 0.5), (2.5, 0.5))

    @pytest.fixture
    def layers(self) -> Chain:
        rows = [Row(channels=2, kernel=1)] * 3
        layers = Chain.build(chain("known", rows, num_classes=2, image_channels=1))
        with torch.no_grad():
            for layer, (one, other) in zip(layers.parts(), self.GOODNESS, strict=True):
                layer.weight.zero_()
                layer.weight[0, 0] = 2 * one
                layer.weight[1, -1] = 2 * other
        return layers

    @pytest.fixture
    def image(self) -> Tensor:
        image = torch.zeros(1, 32, 32, dtype=torch.uint8)
        image[:, 16:] = 255
        return image

    def test_the_layers_have_the_goodness_above(self, layers: Chain, image: Tensor):
        model = LocalNetwork(layers, (0, 2), CLASSES)
        np.testing.assert_allclose(model.logits(image[None])[:, 0], self.GOODNESS, atol=1e-3)

    @pytest.mark.parametrize(
        ("window", "threshold", "num_layers", "lead"),
        [
            # after 1, 2, 3 layers class 0 leads by 0.5, 1.5, 3.5: 62.2, 81.8 and 97.1 %
            ((0, 2), 1e-9, 1, 0.5),
            ((0, 2), 0.62, 1, 0.5),
            ((0, 2), 0.63, 2, 1.5),
            ((0, 2), 0.81, 2, 1.5),
            ((0, 2), 0.82, 3, 3.5),
            ((0, 2), 1.0, 3, 3.5),
            # without layer 0 it leads by 1 and by 3: 73.1 and 95.3 %
            ((1, 2), 1e-9, 2, 1.0),
            ((1, 2), 0.73, 2, 1.0),
            ((1, 2), 0.74, 3, 3.0),
            ((0, 1), 1.0, 2, 1.5),
            ((2, 2), 1e-9, 3, 2.0),
            ((0, 0), 1.0, 1, 0.5),
        ],
    )
    def test_layers_are_computed_until_the_threshold_is_reached(
        self,
        layers: Chain,
        image: Tensor,
        window: tuple[int, int],
        threshold: float,
        num_layers: int,
        lead: float,
    ):
        model = LocalNetwork(layers, window, CLASSES)
        probabilities, computed = model.early_exit(image[None], threshold)
        assert computed.tolist() == [num_layers]
        first = 1 / (1 + np.exp(-lead))
        assert probabilities[0].tolist() == pytest.approx([first, 1 - first], abs=1e-3)

    def test_the_threshold_itself_is_enough(self, layers: Chain):
        even = torch.full((1, 1, 32, 32), 9, dtype=torch.uint8)  # normalised to zero everywhere
        with torch.no_grad():
            for layer in layers.parts():
                layer.weight.zero_()
        probabilities, computed = LocalNetwork(layers, (0, 2), CLASSES).early_exit(even, 0.5)
        assert (probabilities.tolist(), computed.tolist()) == ([[0.5, 0.5]], [1])

    def test_a_threshold_of_one_gives_the_answer_of_the_whole_window(self):
        model = LocalNetwork(Chain.build(narrow("resnet")), (2, 9), CLASSES)
        images = pixels(3)
        probabilities, computed = model.early_exit(images, 1.0)
        np.testing.assert_allclose(probabilities, model(images).softmax(1), rtol=1e-5)
        assert computed.tolist() == [10, 10, 10]
        assert model.early_exit(images, 1e-9)[1].tolist() == [3, 3, 3]

    def test_a_layer_is_computed_for_the_images_that_go_on(self):
        """They keep their places in the answer, and the shortcut of an open block."""
        model = LocalNetwork(Chain.build(narrow("resnet", 8)), (0, 16), CLASSES)
        model.temperatures = (0.1,) * 17
        images = torch.randint(256, (16, 3, 2, 2), dtype=torch.uint8)
        images = images.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
        depths = (model.logits(images).cumsum(dim=0) / 0.1).softmax(dim=2)
        threshold = float(depths.amax(dim=2).quantile(0.3))
        batches = []
        for layer in model.chain.parts():
            layer.register_forward_hook(lambda _, args, __: batches.append(len(args[0])))
        probabilities, computed = model.early_exit(images, threshold)
        assert len(set(computed.tolist())) > 3
        assert batches == [n for k in range(17) if (n := int((computed > k).sum()))]
        for row, layers in enumerate(computed.tolist()):
            alone = depths[:, row].amax(dim=1) >= threshold
            assert layers == (int(alone.float().argmax()) + 1 if alone.any() else 17)
            np.testing.assert_allclose(
                probabilities[row], depths[layers - 1, row], rtol=1e-3, atol=1e-5
            )


class TestFeatures:
    @pytest.mark.parametrize("name", ["tinycnn", "resnet"])
    def test_are_what_each_layer_hands_on(self, name: str) -> None:
        layers, images = Chain.build(narrow(name)), pixels(3)
        model = LocalNetwork(layers, (0, 0), CLASSES)
        activations = Activations(features=normalise(images))
        for layer in range(len(layers)):
            activations, _ = layers[layer : layer + 1].evaluate(activations)
            assert torch.equal(model.features(images, layer=layer), activations.features)

    def test_no_deeper_layer_is_computed(self) -> None:
        layers = Chain.build(narrow("tinycnn"), dtype=torch.bfloat16)
        layers.parts()[2].register_forward_hook(lambda *_: pytest.fail("not needed"))
        found = LocalNetwork(layers, (0, 0), CLASSES).features(pixels(), 1)
        assert (found.dtype, found.shape) == (torch.float32, (2, 8, 16, 16))

    @pytest.mark.parametrize("layer", [-1, 4])
    def test_a_layer_that_is_not_there(self, layer: int) -> None:
        model = LocalNetwork(Chain.build(narrow("tinycnn")), (0, 0), CLASSES)
        with pytest.raises(UserError, match=f"no layer {layer}: its layers are 0 to 3"):
            model.features(pixels(), layer)


def test_forward_hooks_fire_once_in_each_layer() -> None:
    model = LocalNetwork(Chain.build(narrow("resnet")), (0, 16), CLASSES)
    images, seen = pixels(3), {}
    for name, module in model.named_modules():
        if name.startswith("chain.layers.") and name.count(".") == 2:
            module.register_forward_hook(
                lambda _, args, output, name=name: seen.update({name: (args, output)})
            )
    logits = model.logits(images)
    assert [*seen] == [f"chain.layers.{layer}" for layer in range(17)]
    for each, ((x,), (features, scores)) in zip(logits, seen.values(), strict=True):
        assert len(x) == len(features) == 3
        assert torch.equal(scores, each)
    seen.clear()
    model(images)
    assert len(seen) == 17
