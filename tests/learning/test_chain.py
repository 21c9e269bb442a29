import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayff.learning.chain import Activations, Chain, ForwardForward, join, normalise
from rayff.learning.layer import CWConv
from rayff.models.architecture import Architecture, LayerSpec
from rayff.models.zoo import Row, architecture, chain
from tests.models.test_zoo import TABLES

CLASSES = 2


def narrow(name: str, width: int = 4) -> Architecture:
    return architecture(name, num_classes=CLASSES, image_channels=3, width=width)


def pixels(batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randint(256, (batch, channels, 32, 32), dtype=torch.uint8)


def cw(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    h = F.relu(F.conv2d(x, weight, stride=stride, padding=1))
    return F.group_norm(h, CLASSES)


class TestNormalise:
    def test_every_image_has_mean_zero_and_deviation_one(self):
        images = pixels()
        of_one = images.double().numpy() / 255
        mean = of_one.mean(axis=(1, 2, 3), keepdims=True)
        variance = ((of_one - mean) ** 2).mean(axis=(1, 2, 3), keepdims=True)
        expected = (of_one - mean) / np.sqrt(variance + 1e-5)
        np.testing.assert_allclose(normalise(images), expected, atol=1e-5)

    def test_channels_keep_their_differences(self):
        image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        image[:, 2] = 255
        # mean 1/3 and variance 2/9 over all three channels
        colours = normalise(image)[0, :, 0, 0]
        assert colours.tolist() == pytest.approx([-(0.5**0.5), -(0.5**0.5), 2**0.5], abs=1e-3)

    def test_one_colour_everywhere_stays_finite(self):
        grey = torch.full((1, 1, 32, 32), 7, dtype=torch.uint8)
        assert normalise(grey).abs().max() < 1e-3

    def test_the_number_format_is_the_one_asked_for(self):
        assert normalise(pixels(), torch.bfloat16).dtype == torch.bfloat16


class TestJoins:
    @staticmethod
    def closing(kind) -> LayerSpec:
        return LayerSpec(
            index=1, in_channels=2, out_channels=2, kernel_size=3, in_size=2, join=kind
        )

    def test_add_sums(self):
        features, shortcut = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
        assert torch.equal(join(features, shortcut, self.closing("add")), features + shortcut)

    def test_concat_puts_the_shortcut_behind_the_features(self):
        features, shortcut = torch.randn(2, 4, 2, 2), torch.randn(2, 6, 2, 2)
        joined = join(features, shortcut, self.closing("concat"))
        assert joined.shape == (2, 10, 2, 2)
        assert torch.equal(joined[:, :4], features)
        assert torch.equal(joined[:, 4:], shortcut)

    @pytest.mark.parametrize("kind", ["add", "concat"])
    def test_a_larger_shortcut_is_averaged_over_two_by_two_pixels(self, kind):
        features = torch.zeros(1, 1, 2, 2)
        shortcut = torch.arange(16.0).reshape(1, 1, 4, 4)
        joined = join(features, shortcut, self.closing(kind))
        assert joined[:, -1].tolist() == [[[2.5, 4.5], [10.5, 12.5]]]

    def test_the_blocks_of_the_resnet_are_those_that_torch_computes_by_hand(self):
        layers = Chain.build(narrow("resnet"), seed=2)[:13]
        w = [layer.weight.detach() for layer in layers.cwconvs()]
        images = pixels()
        x = F.layer_norm(images.float() / 255, (3, 32, 32))
        stem = cw(x, w[0])
        a = cw(cw(stem, w[1]), w[2]) + stem
        b = torch.cat((cw(cw(a, w[3]), w[4]), a), dim=1)
        c = cw(cw(b, w[5], 2), w[6]) + F.avg_pool2d(b, 2)
        d = torch.cat((cw(cw(c, w[7]), w[8]), c), dim=1)
        e = cw(cw(d, w[9], 2), w[10]) + F.avg_pool2d(d, 2)
        f = torch.cat((cw(cw(e, w[11]), w[12]), e), dim=1)
        for end, expected in ((3, a), (5, b), (7, c), (9, d), (11, e), (13, f)):
            activations, _ = layers[:end].evaluate(Activations(features=normalise(images)))
            assert torch.equal(activations.features, expected)
            assert activations.shortcut is None

    def test_a_block_that_widens_and_shrinks_concatenates_the_pooled_shortcut(self):
        layers = Chain.build(narrow("resnet20"), seed=2)
        w = [layer.weight.detach() for layer in layers.cwconvs()]
        x = torch.randn(2, 4, 32, 32)
        out, _ = layers[7:9].evaluate(Activations(features=x))
        by_hand = torch.cat((cw(cw(x, w[7], 2), w[8]), F.avg_pool2d(x, 2)), dim=1)
        assert torch.equal(out.features, by_hand)


def entering(layers: Chain, images: Tensor) -> list[tuple[int, ...]]:
    """Return the shape of what enters each layer, and of what leaves the last."""
    shapes: list[tuple[int, ...]] = []

    def visit(layer: CWConv, x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return layer(x)[0]

    with torch.no_grad():
        out = layers.walk(Activations(features=normalise(images)), visit)
    return [*shapes, tuple(out.features.shape)]


class TestShapes:
    @pytest.mark.parametrize(
        ("name", "width"), [("resnet", 4), ("vgg", 2), ("tinycnn", 4), ("plain17", 2)]
    )
    def test_a_batch_has_the_shapes_of_the_table_at_every_layer(self, name: str, width: int):
        table = TABLES[name]
        unit = table[0][1]
        sizes = [32] + [row[5] for row in table]
        channels = [3] + [row[0] * width // unit for row in table[1:]]
        channels.append(table[-1][1] * width // unit)
        expected = [(2, k, s, s) for k, s in zip(channels, sizes, strict=True)]
        assert entering(Chain.build(narrow(name, width)), pixels()) == expected

    @pytest.mark.parametrize(
        ("name", "ends"),
        [
            ("resnet20", {1: (2, 32), 7: (2, 32), 13: (4, 16), 19: (8, 8)}),
            ("resnet34", {1: (2, 32), 7: (2, 32), 15: (4, 16), 27: (8, 8), 33: (16, 4)}),
            ("resnet101", {1: (2, 32), 10: (8, 32), 22: (16, 16), 91: (32, 8), 100: (64, 4)}),
        ],
    )
    def test_a_batch_has_the_shapes_of_its_groups_behind_each_of_them(
        self, name: str, ends: dict[int, tuple[int, int]]
    ):
        shapes = entering(Chain.build(narrow(name, 2)), pixels(batch=1))
        assert {at: shapes[at] for at in ends} == {at: (1, k, s, s) for at, (k, s) in ends.items()}

    @pytest.mark.parametrize("name", ["resnet", "resnet20", "vgg"])
    def test_every_layer_gives_a_goodness_for_each_class(self, name: str):
        network = narrow(name, 2)
        _, goodness = Chain.build(network).evaluate(Activations(features=normalise(pixels(3))))
        assert [tuple(each.shape) for each in goodness] == [(3, CLASSES)] * len(network)

    @pytest.mark.parametrize("name", ["resnet", "vgg", "resnet20"])
    def test_a_cut_is_crossed_by_as_many_elements_as_the_architecture_says(self, name: str):
        network = narrow(name, 2)
        activations = Activations(features=normalise(pixels()))
        layers = Chain.build(network)
        for position in range(len(network)):
            crosses = activations.features[0].numel()
            if activations.shortcut is not None:
                crosses += activations.shortcut[0].numel()
            assert network.boundary_elements(position) == crosses, f"before layer {position}"
            activations, _ = layers[position : position + 1].evaluate(activations)


class TestSlices:
    def evaluate_in_parts(
        self, layers: Chain, images: Tensor, cuts: list[int]
    ) -> tuple[Tensor, list[Tensor]]:
        activations, goodness = Activations(features=normalise(images, layers.dtype)), []
        bounds = [0, *cuts, len(layers)]
        for start, end in zip(bounds, bounds[1:], strict=False):
            activations, more = layers[start:end].evaluate(activations)
            goodness += more
        return activations.features, goodness

    @settings(max_examples=20)
    @given(data=st.data())
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_any_cuts_give_the_bits_of_the_whole(self, dtype: torch.dtype, data: st.DataObject):
        layers = Chain.build(narrow("resnet", 2), dtype=dtype)
        cuts = data.draw(st.lists(st.integers(1, 16), unique=True).map(sorted))
        images = pixels()
        whole, goodness = layers.evaluate(Activations(features=normalise(images, dtype)))
        features, parts = self.evaluate_in_parts(layers, images, cuts)
        assert torch.equal(features, whole.features)
        assert torch.equal(torch.stack(parts), torch.stack(goodness))

    @pytest.mark.parametrize("name", ["resnet", "resnet20", "tinycnn"])
    def test_layer_by_layer_gives_the_bits_of_the_whole(self, name: str):
        layers, images = Chain.build(narrow(name, 2)), pixels()
        whole, goodness = layers.evaluate(Activations(features=normalise(images)))
        features, parts = self.evaluate_in_parts(layers, images, list(range(1, len(layers))))
        assert torch.equal(features, whole.features)
        assert torch.equal(torch.stack(parts), torch.stack(goodness))

    def test_a_slice_built_on_its_own_has_the_weights_of_the_whole(self):
        network = narrow("resnet", 2)
        whole, part = Chain.build(network, seed=8), Chain.build(network[5:9], seed=8)
        for one, other in zip(whole.cwconvs()[5:9], part.cwconvs(), strict=True):
            assert torch.equal(one.weight, other.weight)

    def test_a_slice_shares_its_layers_with_the_whole(self):
        layers = Chain.build(narrow("tinycnn", 2))
        part = layers[1:3]
        assert part.cwconvs() == layers.cwconvs()[1:3]
        assert part.cwconvs()[0] is layers.cwconvs()[1]
        assert len(part) == 2

    def test_evaluating_drops_nothing_and_leaves_no_graph(self):
        layers, images = Chain.build(narrow("tinycnn", 2), dropout=0.5), pixels()
        activations, goodness = layers.evaluate(Activations(features=normalise(images)))
        sure = Chain.build(narrow("tinycnn", 2)).evaluate(Activations(features=normalise(images)))
        assert torch.equal(activations.features, sure[0].features)
        assert not activations.features.requires_grad
        assert not any(each.requires_grad for each in goodness)


class TestForwardForward:
    @pytest.mark.parametrize("window", [(0, 0), (0, 3), (1, 2), (3, 3)])
    def test_the_logits_are_the_goodness_summed_over_the_window(self, window: tuple[int, int]):
        layers, images = Chain.build(narrow("tinycnn")), pixels(3)
        _, goodness = layers.evaluate(Activations(features=normalise(images)))
        first, last = window
        by_hand = sum(each.double() for each in goodness[first : last + 1])
        model = ForwardForward(layers, window, ("no", "yes"))
        np.testing.assert_allclose(model(images), by_hand, rtol=1e-5)
        assert model.class_names == ("no", "yes")

    def test_the_goodness_of_the_first_layers_costs_no_further_ones(self):
        layers, images = Chain.build(narrow("tinycnn")), pixels(3)
        model = ForwardForward(layers, (0, 3), ("no", "yes"))
        whole = model.goodness(images)
        assert whole.shape == (4, 3, CLASSES)
        layers.cwconvs()[2].register_forward_hook(lambda *_: pytest.fail("not needed"))
        assert torch.equal(model.goodness(images, 2), whole[:2])
        assert torch.equal(ForwardForward(layers, (1, 1), ("no", "yes"))(images), whole[1])

    def test_layers_behind_the_window_may_be_missing(self):
        network = narrow("resnet", 2)
        images = pixels()
        whole = ForwardForward(Chain.build(network), (1, 5), ("no", "yes"))
        pruned = ForwardForward(Chain.build(network[:6]), (1, 5), ("no", "yes"))
        assert torch.equal(pruned(images), whole(images))

    def test_logits_have_no_graph(self):
        model = ForwardForward(Chain.build(narrow("tinycnn")), (0, 3), ("no", "yes"))
        assert not model(pixels()).requires_grad


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
            for layer, (one, other) in zip(layers.cwconvs(), self.GOODNESS, strict=True):
                layer.weight.zero_()
                layer.weight[0, 0] = 2 * one
                layer.weight[1, -1] = 2 * other
        return layers

    @pytest.fixture
    def image(self) -> Tensor:
        image = torch.zeros(1, 32, 32, dtype=torch.uint8)
        image[:, 16:] = 255
        return image

    def test_the_layers_have_the_goodness_that_was_meant(self, layers: Chain, image: Tensor):
        model = ForwardForward(layers, (0, 2), ("no", "yes"))
        np.testing.assert_allclose(model.goodness(image[None])[:, 0], self.GOODNESS, atol=1e-3)

    @pytest.mark.parametrize(
        ("window", "threshold", "num_layers", "lead"),
        [
            # after 1, 2, 3 layers class 0 leads by 0.5, 1.5, 3.5: 62.2, 81.8 and 97.1 %
            ((0, 2), 1e-9, 1, 0.5),
            ((0, 2), 0.62, 1, 0.5),
            ((0, 2), 0.63, 2, 1.5),
            ((0, 2), 0.81, 2, 1.5),
            ((0, 2), 0.82, 3, 3.5),
            ((0, 2), 0.99, 3, 3.5),
            ((0, 2), 1.0, 3, 3.5),
            # without layer 0 it leads by 1 and by 3: 73.1 and 95.3 %
            ((1, 2), 1e-9, 2, 1.0),
            ((1, 2), 0.73, 2, 1.0),
            ((1, 2), 0.74, 3, 3.0),
            ((1, 2), 1.0, 3, 3.0),
            ((0, 1), 1.0, 2, 1.5),
            ((2, 2), 1e-9, 3, 2.0),
            ((0, 0), 1.0, 1, 0.5),
        ],
    )
    def test_as_many_layers_are_asked_as_it_takes(
        self,
        layers: Chain,
        image: Tensor,
        window: tuple[int, int],
        threshold: float,
        num_layers: int,
        lead: float,
    ):
        model = ForwardForward(layers, window, ("no", "yes"))
        probabilities, computed = model.early_exit(image, threshold)
        assert computed == num_layers
        sure = 1 / (1 + np.exp(-lead))
        assert probabilities.tolist() == pytest.approx([sure, 1 - sure], abs=1e-3)

    def test_the_threshold_itself_is_sure_enough(self, layers: Chain):
        even = torch.full((1, 32, 32), 9, dtype=torch.uint8)  # normalised to zero everywhere
        with torch.no_grad():
            for layer in layers.cwconvs():
                layer.weight.zero_()
        model = ForwardForward(layers, (0, 2), ("no", "yes"))
        probabilities, computed = model.early_exit(even, 0.5)
        assert (probabilities.tolist(), computed) == ([0.5, 0.5], 1)

    @pytest.mark.parametrize("threshold", [1e-9, 1.0])
    def test_probabilities_sum_to_one(self, threshold: float):
        model = ForwardForward(Chain.build(narrow("resnet")), (2, 9), ("no", "yes"))
        probabilities, computed = model.early_exit(pixels(1)[0], threshold)
        assert probabilities.sum().item() == pytest.approx(1)
        assert computed == (3 if threshold < 0.5 else 10)

    def test_the_last_layer_gives_the_answer_of_the_whole_window(self):
        model = ForwardForward(Chain.build(narrow("resnet")), (2, 9), ("no", "yes"))
        image = pixels(1)[0]
        probabilities, _ = model.early_exit(image, 1.0)
        np.testing.assert_allclose(probabilities, model(image[None])[0].softmax(0), rtol=1e-5)
