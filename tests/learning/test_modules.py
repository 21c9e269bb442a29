"""Layers that are modules: shapes, seeds, dropout, what training and evaluation compute."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayff.config.errors import UserError
from rayff.config.local_loss import LossConfig
from rayff.config.recipe import Recipe
from rayff.config.registry import ImportPathError
from rayff.learning.autograd import autograd_step
from rayff.learning.chain import Activations, Chain
from rayff.learning.generators import Share, seeded_generators
from rayff.learning.layer_state import Layout, layer_state, restore_layer
from rayff.learning.module_layer import ModuleLayer
from rayff.learning.module_trial import try_modules
from rayff.learning.optimizers import optimizer_class
from rayff.learning.step import ChainStep
from rayff.learning.updates import ImmediateUpdates
from rayff.models.architecture import Architecture
from rayff.models.zoo import architecture
from tests.helpers.layers import CPU
from tests.helpers.modules import HERE

CLASSES = 3
EVERY_KIND = architecture(f"{HERE}:every_kind", num_classes=CLASSES, image_channels=1)
PER_IMAGE = architecture(f"{HERE}:per_image", num_classes=CLASSES, image_channels=1)
LOSS = LossConfig(name="linear")
LABELS = torch.tensor([0, 2, 1, 1])


def build(network: Architecture = EVERY_KIND, **options: Any) -> Chain:
    return Chain.build(network, **{"dropout": 0.25, "seed": 3, "loss": LOSS, **options})


def layer_of(index: int, network: Architecture = EVERY_KIND, **options: Any) -> ModuleLayer:
    (layer,) = build(network[index : index + 1], **options).parts()
    assert isinstance(layer, ModuleLayer)
    return layer


def features(layer: ModuleLayer, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, *layer.spec.in_shape, generator=generator)


class TestDescription:
    def test_shapes_and_counts_are_those_of_the_modules(self):
        assert EVERY_KIND.num_classes == CLASSES
        assert [(s.in_shape, s.out_shape, s.feature_shape) for s in EVERY_KIND.modules] == [
            ((1, 32, 32), (4, 32, 32), (4, 8, 8)),
            ((4, 8, 8), (4, 8, 8), (4, 8, 8)),
            ((4, 8, 8), (4, 6), (4, 6)),
            ((4, 6), (4, 6), (4, 6)),
            ((4, 6), (8,), (8,)),
        ]
        conv, attention = 4 * 4 * 9, 4 * 6 * 6
        assert [s.num_weights for s in EVERY_KIND.modules] == [
            4 * 9 + 4 + 8,
            2 * (conv + 4) + 8,
            4 * 6 * 16 + 6,
            attention + 3 * 6 + 6 + 12,
            24 * 8 + 8 + 2,  # the scale does not learn
        ]
        # a convolution at each pixel; four projections, and two products of 4x4 tokens
        assert [s.num_products for s in EVERY_KIND.modules] == [
            4 * 9 * 32 * 32,
            2 * conv * 8 * 8,
            4 * 6 * 16 * 4,
            4 * attention + 2 * 4 * 4 * 6,
            24 * 8,
        ]

    def test_losses_find_channels_and_sizes(self):
        names = ("index", "in_channels", "out_channels", "out_size")
        assert [tuple(getattr(s, n) for n in names) for s in EVERY_KIND.layers] == [
            (0, 1, 4, 32),
            (1, 4, 4, 8),
            (2, 4, 6, 1),
            (3, 6, 6, 1),
            (4, 6, 8, 1),
        ]

    def test_boundaries_carry_what_is_handed_on(self):
        elements = [EVERY_KIND.boundary_elements(position) for position in range(5)]
        assert elements == [32 * 32, 4 * 8 * 8, 4 * 8 * 8, 4 * 6, 4 * 6]

    def test_it_is_json(self):
        import json

        for each in (EVERY_KIND, EVERY_KIND[1:3]):
            assert Architecture.from_dict(json.loads(json.dumps(each.to_dict()))) == each

    def test_width_and_image_channels_reach_the_function(self):
        made = architecture(f"{HERE}:per_image", num_classes=2, image_channels=3, width=10)
        assert made.source is not None
        assert (made.source.width, made.image_channels) == (10, 3)
        assert made[0].out_shape == (10, 16, 16)
        assert Chain.build(made).parts()[0].module.weight.shape == (10, 3, 3, 3)

    @pytest.mark.parametrize("name", ["vgg8b", "vgg11b"])
    def test_the_networks_of_the_paper(self, name: str):
        pooled = {
            "vgg8b": [128, -256, 256, -512, -512, -512],
            "vgg11b": [128, 128, 128, -256, 256, -512, 512, -512, -512],
        }[name]
        made = architecture(name, num_classes=10, image_channels=3)
        channels, size = 3, 32
        for spec, entry in zip(made.modules, pooled, strict=False):
            own = abs(entry)
            assert (spec.in_shape, spec.out_shape) == (
                (channels, size, size),
                (own, size, size),
            )
            # weights and bias of the convolution, and those of batch norm
            assert spec.num_weights == own * channels * 9 + 3 * own
            assert spec.num_products == own * channels * 9 * size * size
            channels, size = own, size // 2 if entry < 0 else size
            assert spec.feature_shape == (channels, size, size)
        assert (channels, size) == (512, 2)
        assert len(made) == len(pooled) + 1
        last = made.modules[-1]
        assert (last.in_shape, last.out_shape) == ((512, 2, 2), (1024,))
        narrow = architecture(name, num_classes=10, image_channels=3, width=16)
        assert [s.out_channels * 8 for s in narrow.layers] == [s.out_channels for s in made.layers]


class TestSeeds:
    def test_initial_weights_follow_from_seed_and_number_alone(self):
        torch.manual_seed(11)
        before = torch.get_rng_state()
        whole = build()
        assert torch.equal(torch.get_rng_state(), before)
        for index, layer in enumerate(whole.parts()):
            torch.manual_seed(index)
            alone = layer_of(index)
            for name, value in layer.state_dict().items():
                assert torch.equal(value, alone.state_dict()[name]), name
        other = layer_of(0, seed=4)
        assert not torch.equal(other.module.conv.weight, whole.parts()[0].module.conv.weight)

    def test_what_a_module_draws_follows_from_seed_layer_and_step(self):
        layer = layer_of(1)
        x = features(layer)

        def drawn(seed: int = 3, index: int = 1, step: int = 7) -> Tensor:
            torch.rand(3)
            with seeded_generators(seed, index, step, CPU):
                return layer.outputs(x)[0]

        first = drawn()
        assert torch.equal(drawn(), first)
        for changed in ({"seed": 4}, {"index": 2}, {"step": 8}):
            assert not torch.equal(drawn(**changed), first)

    def test_a_step_leaves_torchs_generators_alone(self):
        layer = layer_of(1)
        before = torch.get_rng_state()
        with seeded_generators(0, 1, 2, CPU):
            layer.outputs(features(layer))
        assert torch.equal(torch.get_rng_state(), before)


class TestOutputs:
    def test_the_loss_sees_the_output_and_the_next_layer_what_is_handed_on(self):
        layer = layer_of(0)
        x = features(layer)
        h, handed = layer.outputs(x)
        module = layer.module
        y = F.conv2d(x, module.conv.weight, module.conv.bias, padding=1)
        mean, variance = y.mean(dim=(0, 2, 3)), y.var(dim=(0, 2, 3), unbiased=False)
        expected = F.relu((y - mean[:, None, None]) / (variance + 1e-5).sqrt()[:, None, None])
        torch.testing.assert_close(h, expected)
        torch.testing.assert_close(handed, F.max_pool2d(expected, 4))
        assert h.requires_grad
        assert not handed.requires_grad

    @pytest.mark.parametrize("index", range(5))
    def test_no_gradient_enters_or_leaves(self, index: int):
        layer = layer_of(index)
        x = features(layer).requires_grad_()
        h, handed = layer.outputs(x)
        h.square().sum().backward()
        assert x.grad is None
        assert not handed.requires_grad

    @pytest.mark.parametrize("index", range(5))
    def test_dropout_drops_channels_of_maps_and_single_features_of_others(self, index: int):
        layer = layer_of(index)
        state = layer.dropout_state(Share(step=5, batch_size=4), CPU)
        h = torch.ones(4, *layer.spec.out_shape)
        dropped = layer.drop(h, state)
        if h.dim() == 4:
            assert torch.equal(dropped, dropped[:, :, :1, :1].expand_as(dropped))
            dropped = dropped[:, :, 0, 0]
        assert dropped.unique().tolist() == pytest.approx([0.0, 256 / 192])
        assert torch.equal(layer.drop(h, None), h)
        # an image has the same in any share
        share = layer.dropout_state(Share(step=5, batch_size=4, first=3), CPU)
        assert torch.equal(layer.drop(h[3:], share), layer.drop(h, state)[3:])

    def test_dropout_spares_the_loss(self):
        layer = layer_of(4)
        x = features(layer)
        state = layer.dropout_state(Share(step=0, batch_size=4), CPU)
        h, handed = layer.outputs(x, state)
        assert torch.equal(h, layer.outputs(x)[0])
        assert torch.equal(handed, layer.drop(h.detach(), state))
        assert not torch.equal(handed, h)

    @pytest.mark.parametrize("index", range(5))
    def test_bfloat16_computes_inside_and_is_handed_on(self, index: int):
        narrow, wide = layer_of(index, dtype=torch.bfloat16), layer_of(index)
        x = features(wide)
        h, handed = narrow.eval().outputs(x.bfloat16())
        expected, _ = wide.eval().outputs(x)
        assert (h.dtype, handed.dtype) == (torch.float32, torch.bfloat16)
        assert (h - expected).norm() < 0.02 * expected.norm()
        assert not torch.equal(h, expected)
        assert {p.dtype for p in narrow.parameters()} == {torch.float32}

    def test_features_have_the_strides_of_a_message(self):
        layer = layer_of(2)
        _, handed = layer.outputs(features(layer))
        assert handed.is_contiguous()
        last = build(PER_IMAGE).to(memory_format=torch.channels_last).parts()[0]
        x = features(last).to(memory_format=torch.channels_last)
        _, handed = last.outputs(x)
        assert handed.is_contiguous(memory_format=torch.channels_last)


class TestPooledLosses:
    """They see single features as a map of one pixel, and tokens as a row of pixels."""

    @pytest.mark.parametrize("name", ["linear", "linear_similarity", "channel_matrix"])
    @pytest.mark.parametrize("index", [0, 2, 3])
    def test_any_shape(self, name: str, index: int):
        layer = layer_of(index, loss=LossConfig(name=name))
        h, _ = layer.outputs(features(layer))
        logits, losses = layer.losses(h, LABELS)
        assert logits.shape == (4, CLASSES)
        assert losses is not None
        assert losses.shape == (4,)

    def test_tokens_are_averaged(self):
        layer = layer_of(3)
        nn.init.normal_(layer.loss.head.weight)
        h, _ = layer.outputs(features(layer))
        logits, _ = layer.losses(h, None)
        expected = layer.loss.head(h.mean(dim=1))
        torch.testing.assert_close(logits, expected)


class TestTraining:
    def steps(self, chain: Chain, steps: range, optimizer: str = "adamw") -> dict[str, Tensor]:
        optimizers = {
            layer.spec.index: optimizer_class(optimizer)(
                (p for p in layer.parameters() if p.requires_grad), Recipe(lr=0.01)
            )
            for layer in chain.parts()
        }
        step = ChainStep(chain, autograd_step, ImmediateUpdates(optimizers))
        for number in steps:
            generator = torch.Generator().manual_seed(number)
            images = torch.randn(4, *chain.architecture[0].in_shape, generator=generator)
            states = chain.dropout_states(Share(step=number, batch_size=4), CPU)
            step(Activations(features=images), LABELS, 4, states, number)
        return {
            f"{layer.spec.index} {name}": value.clone()
            for layer in chain.parts()
            for name, value in layer_state(layer, optimizers[layer.spec.index]).items()
        }

    def test_repeats_whatever_was_drawn_before(self):
        first = self.steps(build(), range(3))
        torch.manual_seed(99)
        second = self.steps(build(), range(3))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_what_learns_changes_and_the_rest_stays(self):
        before = build().state_dict()
        after = self.steps(build(), range(2))
        fixed = {"4 module.scale"}
        for name, value in before.items():
            _, index, rest = name.split(".", 2)
            moved = not torch.equal(after[f"{index} {rest}"], value)
            assert moved == (f"{index} {rest}" not in fixed), name

    def test_the_state_has_buffers_and_optimizer_state_of_what_learns(self):
        state = self.steps(build(), range(2))
        assert state["0 module.norm.num_batches_tracked"].item() == 2
        assert "0 optimizer.module.norm.weight.exp_avg" in state
        assert not any("running" in name for name in state if "optimizer" in name)
        assert "4 optimizer.module.unused.step" in state
        assert not any("module.scale" in name for name in state if "optimizer" in name)

    def test_evaluation_uses_running_statistics_and_moves_nothing(self):
        chain = build()
        self.steps(chain, range(2))
        layer = chain.parts()[0]
        assert layer.training
        before = {name: value.clone() for name, value in chain.state_dict().items()}
        images = torch.randn(4, 1, 32, 32)
        _, logits = chain.evaluate(Activations(features=images))
        _, alone = chain.evaluate(Activations(features=images[:1]))
        for both, one in zip(logits, alone, strict=True):
            torch.testing.assert_close(both[:1], one, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(before[name], v) for name, v in chain.state_dict().items())
        assert not layer.module.norm.training

    def test_a_restored_layer_goes_on_with_the_same_bits(self):
        def optimizer(layer: ModuleLayer) -> Any:
            own = (p for p in layer.parameters() if p.requires_grad)
            return optimizer_class("adamw")(own, Recipe(lr=0.01))

        def learn(layer: ModuleLayer, own: Any, steps: range) -> None:
            for step in steps:
                with seeded_generators(3, layer.spec.index, step, CPU):
                    autograd_step(layer, features(layer, step), LABELS, 4)[1]()
                own.step()

        for index in range(5):
            whole = layer_of(index)
            its = optimizer(whole)
            learn(whole, its, range(3))
            saved = {name: value.clone() for name, value in layer_state(whole, its).items()}
            learn(whole, its, range(3, 5))
            other = layer_of(index, seed=8)
            own = optimizer(other)
            restore_layer(index, other, own, saved)
            learn(other, own, range(3, 5))
            found, expected = layer_state(other, own), layer_state(whole, its)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in found)

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            ({"module.norm.running_mean": torch.zeros(5)}, r"running_mean of shape \(5,\)"),
            ({"module.norm.running_var": None}, "no module.norm.running_var for layer 0"),
            (
                {"module.norm.num_batches_tracked": torch.tensor(1.0)},
                r"tracked of layer 0 is not \(\) finite numbers of int64",
            ),
            (
                {"module.norm.running_mean": torch.full((4,), float("nan"))},
                "running_mean of layer 0 is not .* finite numbers of float32",
            ),
        ],
    )
    def test_damaged_buffers_are_refused(self, change: dict[str, Any], sentence: str):
        layer = layer_of(0)
        optimizer = optimizer_class("adamw")(layer.parameters(), Recipe())
        state = dict(layer_state(layer, optimizer))
        for name, value in change.items():
            state.pop(name) if value is None else state.update({name: value})
        with pytest.raises(UserError, match=sentence):
            restore_layer(0, layer, optimizer, state)

    def test_the_layout_is_found_without_memory(self):
        layer = layer_of(4)
        with torch.device("meta"):
            assert Layout.of(layer_of(4)) == Layout.of(layer)
        assert Layout.of(layer).fixed == {"module.scale": ((8,), torch.float32)}


class TestLocality:
    """Other labels of one layer move no other layer, but through later features."""

    def train(self, other_labels_at: int | None, steps: int) -> list[list[Tensor]]:
        chain = build(dropout=0.25)

        def step_with_labels(layer: Any, x: Tensor, labels: Tensor, *rest: Any) -> Any:
            own = (labels + 1) % CLASSES if layer.spec.index == other_labels_at else labels
            return autograd_step(layer, x, own, *rest)

        optimizers = {
            layer.spec.index: optimizer_class("adamw")(
                [p for p in layer.parameters() if p.requires_grad], Recipe(lr=0.01)
            )
            for layer in chain.parts()
        }
        step = ChainStep(chain, step_with_labels, ImmediateUpdates(optimizers))
        for number in range(steps):
            generator = torch.Generator().manual_seed(number)
            images = torch.randn(4, 1, 32, 32, generator=generator)
            states = chain.dropout_states(Share(step=number, batch_size=4), CPU)
            step(Activations(features=images), LABELS, 4, states, number)
        return [
            [p.detach() for p in layer.parameters() if p.requires_grad] for layer in chain.parts()
        ]

    @pytest.mark.parametrize("perturbed", range(5))
    def test_a_layers_labels_move_its_own_weights_alone(self, perturbed: int):
        plain, moved = self.train(None, 1), self.train(perturbed, 1)
        for index, (one, other) in enumerate(zip(plain, moved, strict=True)):
            same = all(map(torch.equal, one, other))
            assert same == (index != perturbed)

    @pytest.mark.parametrize("perturbed", range(4))
    def test_and_later_layers_by_the_next_batch(self, perturbed: int):
        plain, moved = self.train(None, 4), self.train(perturbed, 4)
        for index, (one, other) in enumerate(zip(plain, moved, strict=True)):
            assert all(map(torch.equal, one, other)) == (index < perturbed)


class TestMistakes:
    SENTENCES = {
        "fits_not": r"layer 1 of --arch .*:fits_not \(Conv2d\) cannot take the shape "
        r"\(B, 4, 32, 32\) that layer 0 hands on: RuntimeError: .*\(.*, line \d+\)$",
        "fails": r"layer 1 of --arch .*:fails cannot be made \(TypeError: .*\)$",
        "itself": r"layer 1 of --arch .*:itself is a Conv2d itself: give what makes it, such as "
        r"functools.partial\(Conv2d",
        "no_module": "layer 1 of --arch .*:no_module is made as int: return a torch.nn.Module",
        "returns_a_pair": r"\(Pair\) returns tuple of two images: it must be a tensor of shape",
        "in_double": "its parameter weight is float64, and layers learn in float32",
        "masked": "mask holds numbers that are not finite.*persistent=False",
        "extra_state": "its state has _extra_state, which a checkpoint does not hold",
        "shared": r"layer 1 .*\(Sequential\) has parameters that layer 0 has too",
        "lazy": r"\(LazyConv2d\): its parameter weight has no shape yet: use .* without Lazy",
        "hands_on_in_place": r"\(HandsOnInPlace\) changes its output in place in hand_on",
        "in_place": r"\(InPlace\) changes its input in place.*leave out inplace=True",
        "parameter_free": r"layer 1 .*\(ReLU\) has no parameters, and its loss has none",
        "detached": "an output without a gradient.*without torch.no_grad and detach",
        "apart": "the loss Apart has no gradient at the activation of layer 1, which would learn",
        "unknown_loss": "--loss: unknown local loss 'predsin' .*did you mean 'predsim'",
        "loss_of_no_module": "--loss <lambda> made 3 for layer 1, which is no module",
        "own_losses_alone": "--loss linear: every layer of --arch .* has a loss of its own",
        "mixed_with_rows": "returned list of partial and int: return an Architecture, a list of",
        "nothing": "returned list: return an Architecture, a list of Row, or a list of ModuleRow",
    }

    @pytest.mark.parametrize("name", SENTENCES)
    def test_are_one_sentence(self, name: str):
        def check() -> None:
            made = architecture(f"{HERE}:{name}", num_classes=2, image_channels=3)
            try_modules(made, LOSS, replicated=False)

        with pytest.raises(UserError, match=self.SENTENCES[name]) as caught:
            check()
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("batch_norm", r"--replicas: .*\(Normed\) has a BatchNorm2d, .*torch.nn.GroupNorm"),
            ("drawing", r"--replicas: .*\(Residual\) or its loss draws random numbers"),
            ("counting", r"--replicas: what .*\(Counting\) or its loss computes of an image"),
            ("centred", r"--replicas: what .*\(Centred\) or its loss computes of an image"),
            ("coupling_loss", "--replicas: the loss Predsim of .* compares the images"),
        ],
    )
    def test_modules_that_replicas_would_change(self, name: str, sentence: str):
        made = architecture(f"{HERE}:{name}", num_classes=2, image_channels=3)
        try_modules(made, LOSS, replicated=False)
        with pytest.raises(UserError, match=sentence):
            try_modules(made, LOSS, replicated=True)

    def test_modules_that_compute_each_image_by_itself_have_replicas(self):
        try_modules(PER_IMAGE, LOSS, replicated=True)

    def test_a_last_batch_of_one_image(self):
        made = architecture("vgg8b", num_classes=2, image_channels=1, width=2)
        try_modules(made, LOSS, replicated=False)
        sentence = r"the last batch of an epoch has 1 image, from which layer 6 .*FullyConnected.*"
        with pytest.raises(UserError, match=sentence):
            try_modules(made, LOSS, replicated=False, smallest_batch=1)
        try_modules(PER_IMAGE, LOSS, replicated=False, smallest_batch=1)

    def test_a_batch_that_is_cut_later_is_refused_where_it_happens(self):
        made = architecture(f"{HERE}:cuts_batches", num_classes=2, image_channels=3)
        try_modules(made, LOSS, replicated=False)
        sentence = r"layer 1 \(CutsBatches\) returns \(2, .*\) of 5 images: return one activation"
        with pytest.raises(UserError, match=sentence):
            layer_of(1, made).outputs(torch.randn(5, 4, 32, 32))

    def test_trying_leaves_the_random_numbers_alone(self):
        before = torch.get_rng_state()
        try_modules(EVERY_KIND, LOSS, replicated=False)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_function_that_makes_fewer_layers_than_before(self, monkeypatch: Any):
        from tests.helpers import modules

        monkeypatch.setattr(modules, "every_kind", lambda **options: [nn.Flatten])
        with pytest.raises(ImportPathError, match="makes 1 layer here.* has a layer 1: use the"):
            build()
        monkeypatch.setattr(modules, "every_kind", lambda **options: [])
        with pytest.raises(ImportPathError, match="returned list"):
            build()


def test_layers_of_one_chain_share_nothing():
    pointers = [p.data_ptr() for p in itertools.chain(build().parameters(), build().buffers())]
    assert len(set(pointers)) == len(pointers)
