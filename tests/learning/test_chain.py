import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayff.learning.chain import Activations, Chain, join, normalise
from rayff.models.architecture import Architecture, LayerSpec
from rayff.models.zoo import ARCHITECTURES, architecture

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

    def test_a_constant_image_stays_finite(self):
        grey = torch.full((1, 1, 32, 32), 7, dtype=torch.uint8)
        assert normalise(grey).abs().max() < 1e-3


class TestJoins:
    @staticmethod
    def closing(kind) -> LayerSpec:
        return LayerSpec(
            index=1, in_channels=2, out_channels=2, kernel_size=3, in_size=2, join=kind
        )

    def test_add_sums(self):
        features, shortcut = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
        assert torch.equal(join(features, shortcut, self.closing("add")), features + shortcut)

    def test_concat_puts_the_shortcut_after_the_features(self):
        features, shortcut = torch.randn(2, 4, 2, 2), torch.randn(2, 6, 2, 2)
        joined = join(features, shortcut, self.closing("concat"))
        assert joined.shape == (2, 10, 2, 2)
        assert torch.equal(joined[:, :4], features)
        assert torch.equal(joined[:, 4:], shortcut)

    @pytest.mark.parametrize("kind", ["add", "concat"])
    def test_a_larger_shortcut_is_average_pooled(self, kind):
        features = torch.zeros(1, 1, 2, 2)
        shortcut = torch.arange(16.0).reshape(1, 1, 4, 4)
        joined = join(features, shortcut, self.closing(kind))
        assert joined[:, -1].tolist() == [[[2.5, 4.5], [10.5, 12.5]]]

    def test_the_blocks_of_the_resnet_written_out(self):
        layers = Chain.build(narrow("resnet"), seed=2)[:13]
        w = [layer.weight.detach() for layer in layers.parts()]
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
        w = [layer.weight.detach() for layer in layers.parts()]
        x = torch.randn(2, 4, 32, 32)
        out, _ = layers[7:9].evaluate(Activations(features=x))
        expected = torch.cat((cw(cw(x, w[7], 2), w[8]), F.avg_pool2d(x, 2)), dim=1)
        assert torch.equal(out.features, expected)


@pytest.mark.parametrize("name", ARCHITECTURES.names)
def test_a_batch_has_the_shapes_of_the_architecture_at_every_boundary(name: str):
    network = narrow(name, 2)
    images = torch.randint(256, (2, *network.image_shape), dtype=torch.uint8)
    activations = Activations(features=normalise(images))
    layers = Chain.build(network)
    for position, spec in enumerate(network.layers):
        assert activations.features.shape == (2, *spec.in_shape)
        sizes: list[int] = []
        activations.map(lambda tensor, sizes=sizes: sizes.append(tensor[0].numel()))
        assert network.boundary_elements(position) == sum(sizes), f"before layer {position}"
        activations, logits = layers[position : position + 1].evaluate(activations)
        assert [tuple(each.shape) for each in logits] == [(2, CLASSES)]


class TestSlices:
    def evaluate_in_parts(
        self, layers: Chain, images: Tensor, cuts: list[int]
    ) -> tuple[Tensor, list[Tensor]]:
        activations = Activations(features=normalise(images, layers.dtype))
        logits: list[Tensor] = []
        bounds = [0, *cuts, len(layers)]
        for start, end in zip(bounds, bounds[1:], strict=False):
            activations, more = layers[start:end].evaluate(activations)
            logits += more
        return activations.features, logits

    @settings(max_examples=30)
    @given(data=st.data())
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_any_cuts_give_the_bits_of_the_whole(self, dtype: torch.dtype, data: st.DataObject):
        name = data.draw(st.sampled_from(["resnet", "resnet20", "tinycnn"]))
        layers = Chain.build(narrow(name, 2), dtype=dtype)
        each_layer = range(1, len(layers))
        some = st.lists(st.sampled_from(each_layer), unique=True).map(sorted)
        cuts = data.draw(st.just([*each_layer]) | some)
        images = pixels()
        whole, logits = layers.evaluate(Activations(features=normalise(images, dtype)))
        features, parts = self.evaluate_in_parts(layers, images, cuts)
        assert torch.equal(features, whole.features)
        assert torch.equal(torch.stack(parts), torch.stack(logits))

    def test_a_slice_built_on_its_own_has_the_weights_of_the_whole(self):
        network = narrow("resnet", 2)
        whole, part = Chain.build(network, seed=8), Chain.build(network[5:9], seed=8)
        for one, other in zip(whole.parts()[5:9], part.parts(), strict=True):
            assert torch.equal(one.weight, other.weight)

    def test_a_slice_shares_its_layers_with_the_whole(self):
        layers = Chain.build(narrow("tinycnn", 2))
        part = layers[1:3]
        assert part.parts() == layers.parts()[1:3]
        assert part.parts()[0] is layers.parts()[1]
        assert len(part) == 2

    def test_evaluation_has_no_dropout_and_no_graph(self):
        layers, images = Chain.build(narrow("tinycnn", 2), dropout=0.5), pixels()
        activations, logits = layers.evaluate(Activations(features=normalise(images)))
        sure = Chain.build(narrow("tinycnn", 2)).evaluate(Activations(features=normalise(images)))
        assert torch.equal(activations.features, sure[0].features)
        assert not activations.features.requires_grad
        assert not any(each.requires_grad for each in logits)
