"""The fast rule against the plain one, with the same dropout bits."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayff.config.kernels import METHODS, Kernels
from rayff.config.recipe import Recipe
from rayff.kernels import native
from rayff.kernels.convolution import methods
from rayff.kernels.precision import set_deterministic
from rayff.learning import analytic as fast
from rayff.learning.analytic import FastStep, fast_forward, fast_rule, pointwise
from rayff.learning.autograd import local_step, plain_rule
from rayff.learning.generators import DropoutGenerator, Share, drawn_bytes
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import LayerOptimizer
from rayff.models.architecture import LayerSpec
from rayff.models.zoo import architecture

CPU = torch.device("cpu")
DEVICES = [
    pytest.param(CPU, id="cpu"),
    pytest.param(
        torch.device("cuda"),
        id="cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
EDGE = 1e-5
"""Relative to their root mean square, how near zero rounding may turn an activation over."""


def shapes() -> dict[str, LayerSpec]:
    """Return each shape of layer of the three networks, once."""
    found: dict[str, LayerSpec] = {}
    for name in ("resnet", "vgg", "tinycnn"):
        for spec in architecture(name, num_classes=10, image_channels=3).layers:
            of_its_own = replace(
                spec, opens_block=False, join="none", shortcut_channels=0, shortcut_size=0
            )
            key = (
                f"{spec.in_channels}-{spec.out_channels} k{spec.kernel_size} s{spec.stride} "
                f"{spec.in_size}{' pool' if spec.pool else ''}"
            )
            found.setdefault(key, of_its_own)
    return found


SHAPES = shapes()


@pytest.fixture(autouse=True, scope="module")
def float32_is_float32() -> None:
    set_deterministic()


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference in units of the norm of what is expected."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def pair(
    spec: LayerSpec,
    kernels: Kernels,
    *,
    classes: int = 10,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> tuple[CWConv, CWConv]:
    """Return the same layer twice, for the plain and for the fast rule."""
    plain = CWConv(spec, classes, dropout=0.2, seed=1, dtype=dtype).to(device)
    fast = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    fast.kernels = kernels
    return plain, fast


def at_the_edge(layer: CWConv, x: Tensor) -> bool:
    """Whether an activation is so near zero that rounding decides its sign.

    An element of the gradient would follow it, as it does between two orders of the same sum.
    """
    exact = copy.deepcopy(layer).double()
    exact.dtype, exact.kernels = torch.float64, Kernels()
    y = FastStep(exact, x.double()).forward()
    return bool(y.abs().min() <= EDGE * y.square().mean().sqrt())


def batch_for(layer: CWConv, images: int) -> tuple[Tensor, Tensor]:
    """Return features that leave no activation at the edge, and labels."""
    spec, device = layer.spec, layer.weight.device
    shape = (images, spec.in_channels, spec.in_size, spec.in_size)
    for seed in range(100):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(layer.dtype)
        x = x.to(device)
        if not at_the_edge(layer, x):
            return x, torch.arange(images, device=device) % layer.num_classes
    raise AssertionError("no such features found")


def whole(labels: Tensor, step: int = 0) -> Share:
    return Share(step=step, batch_size=len(labels))


def assert_the_same_step(
    plain: CWConv, fast: CWConv, x: Tensor, labels: Tensor, within: float
) -> None:
    share = whole(labels)
    plain_x = x
    if x.is_cuda and x.dtype == torch.float32:  # of which cuDNN may multiply ten bits
        plain.dtype, plain, plain_x = torch.float64, plain.double(), x.double()
    features, loss = plain_rule(plain, plain_x, labels, share)
    fast_features, fast_loss = fast_rule(fast, x, labels, share)
    assert fast_features.dtype == x.dtype
    assert relative(fast_features, features) < within
    assert relative(fast_loss, loss) < within
    assert fast.weight.grad.dtype == torch.float32
    assert relative(fast.weight.grad, plain.weight.grad) < within

    features, goodness = plain(plain_x)
    fast_features, fast_goodness = fast_forward(fast, x)
    assert relative(fast_features, features) < within
    assert relative(fast_goodness, goodness) < within


def all_methods(
    spec: LayerSpec, device: torch.device, dtype: torch.dtype = torch.float32
) -> list[Kernels]:
    return [Kernels(method, method) for method in methods(spec, device, dtype)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES)
class TestEveryLayerOfTheThreeNetworks:
    def test_a_step_is_the_plain_rules_in_float32(self, shape: str, device: torch.device):
        plain, _ = pair(SHAPES[shape], Kernels(), device=device)
        x, labels = batch_for(plain, images=2)
        for kernels in all_methods(SHAPES[shape], device):
            plain, fast = pair(SHAPES[shape], kernels, device=device)
            assert_the_same_step(plain, fast, x, labels, within=1e-5)

    def test_a_step_is_the_plain_rules_in_bfloat16(self, shape: str, device: torch.device):
        for kernels in all_methods(SHAPES[shape], device, torch.bfloat16):
            plain, fast = pair(SHAPES[shape], kernels, dtype=torch.bfloat16, device=device)
            spec = plain.spec
            x = torch.randn(2, spec.in_channels, spec.in_size, spec.in_size).bfloat16()
            labels = torch.tensor([3, 0], device=device)
            assert_the_same_step(plain, fast, x.to(device), labels, within=2e-2)

    def test_ten_steps_give_the_plain_rules_weights(self, shape: str, device: torch.device):
        """With SGD. AdamW divides each gradient by its own size and so makes the rounding of
        the smallest as large as a step, whatever the kernel."""
        plain, _ = pair(SHAPES[shape], Kernels(), device=device)
        before = plain.weight.detach().clone()
        x, labels = batch_for(plain, images=1)
        plain_rule(plain, x, labels, whole(labels))
        lr = float(1e-3 * before.norm() / plain.weight.grad.norm())
        recipe = Recipe(optimizer="sgd", lr=lr, weight_decay=0.0)
        optimizer = LayerOptimizer(plain, recipe)
        inputs = []
        for step in range(10):
            inputs.append(batch_for(plain, images=1))
            local_step(plain_rule, plain, optimizer, *inputs[-1], step)
        assert relative(plain.weight.detach(), before) > 0.01

        for kernels in all_methods(SHAPES[shape], device):
            _, fast = pair(SHAPES[shape], kernels, device=device)
            optimizer = LayerOptimizer(fast, recipe)
            for step, (x, labels) in enumerate(inputs):
                local_step(fast_rule, fast, optimizer, x, labels, step)
            assert relative(fast.weight.detach(), plain.weight.detach()) < 1e-5


@st.composite
def layers(draw: st.DrawFn) -> tuple[LayerSpec, int, int]:
    """Return a layer, its number of classes and a number of images."""
    classes = draw(st.integers(2, 5))
    spec = LayerSpec(
        index=draw(st.integers(0, 9)),
        in_channels=draw(st.integers(1, 20)),
        out_channels=classes * draw(st.integers(1, 8)),
        kernel_size=draw(st.sampled_from([1, 3, 5])),
        stride=draw(st.sampled_from([1, 2])),
        pool=draw(st.booleans()),
        in_size=draw(st.integers(2, 6)) * 2,
    )
    assume(spec.out_channels * spec.out_size**2 > classes)  # group norm wants two elements
    return spec, classes, draw(st.integers(1, 5))


@settings(deadline=None, max_examples=200)
@given(case=layers(), data=st.data())
def test_any_layer_learns_as_by_the_plain_rule(
    case: tuple[LayerSpec, int, int], data: st.DataObject
):
    spec, classes, images = case
    known = methods(spec, CPU, torch.float32)
    kernels = Kernels(data.draw(st.sampled_from(known)), data.draw(st.sampled_from(known)))
    plain, fast = pair(spec, kernels, classes=classes)
    x, labels = batch_for(plain, images)
    assert_the_same_step(plain, fast, x, labels, within=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("channels", [10, 100, 130])
def test_the_compiled_pointwise_pass_is_the_one_in_torch(
    dtype: torch.dtype, classes: int, channels: int, monkeypatch: pytest.MonkeyPatch
):
    y = torch.randn(3, channels, 5, 5).to(dtype).to(memory_format=torch.channels_last)
    share = Share(step=3, batch_size=4)
    state = DropoutGenerator(seed=1, layer_index=2, share=share).state(y[0].numel(), y.device)
    labels = torch.tensor([1, 0, 1])
    for rest in ((), (state, 51, labels, 4), (None, 0, labels, 3)):
        found = pointwise(y.clone(memory_format=torch.channels_last), classes, *rest)
        with monkeypatch.context() as without:
            without.setattr(native, "missing", lambda: "no compiler")
            expected = pointwise(y, classes, *rest)
        within = 1e-6 if dtype == torch.float32 else 1e-2
        assert relative(found.goodness, expected.goodness) < 1e-6
        assert relative(found.features, expected.features) < within
        assert (found.gradient is None) == (expected.gradient is None) == (not rest)
        if found.gradient is not None:
            assert relative(found.losses, expected.losses) < 1e-6
            assert relative(found.gradient, expected.gradient) < within
            assert torch.equal(found.gradient == 0, expected.gradient == 0)


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 30), st.integers(1, 6)),
    first=st.integers(0, 3),
    step=st.integers(0, 2**31),
)
def test_the_kernels_draw_the_bytes_of_the_stream(
    shape: tuple[int, int, int], first: int, step: int
):
    images, half, size = shape
    y = torch.randn(images, 2 * half, size, size).to(memory_format=torch.channels_last)
    y = y.abs() + 1  # so that what is dropped is what has no gradient
    share = Share(step=step, batch_size=first + images, first=first)
    stream = DropoutGenerator(seed=3, layer_index=7, share=share)
    state = stream.state(y[0].numel(), y.device)
    labels = torch.zeros(images, dtype=torch.int64)
    drawn, exact = drawn_bytes(state, y.shape), y.permute(0, 2, 3, 1).double()
    features, goodness, gradient, _ = fast._torch_pointwise(exact, 2, drawn, 100, labels, 4)
    found = pointwise(y, 2, state, 100, labels, 4)
    assert torch.equal(found.gradient.permute(0, 2, 3, 1) != 0, drawn >= 100)
    assert relative(found.goodness, goodness) < 1e-6
    assert relative(found.gradient.permute(0, 2, 3, 1), gradient) < 1e-6
    # groups of two nearly equal elements take float32's rounding far up
    assert relative(found.features.permute(0, 2, 3, 1), features) < 1e-3


def test_the_bits_do_not_depend_on_the_number_of_threads():
    spec = SHAPES["100-100 k3 s1 32"]
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        _, layer = pair(spec, Kernels("conv", "winograd"))
        x = torch.randn(3, 100, 32, 32, generator=torch.Generator().manual_seed(0))
        y = FastStep(layer, x).forward()
        found = pointwise(y, 10, None, 0, torch.tensor([0, 1, 2]), 3)
        results.append((found.features, found.gradient, found.goodness))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["conv", "winograd"])
def test_what_is_not_finite_shows_in_the_loss(bad: float, method: str):
    _, layer = pair(SHAPES["100-100 k3 s1 32"], Kernels(method, method))
    x = torch.randn(2, 100, 32, 32)
    x[1, 3, 5, 5] = bad
    labels = torch.tensor([0, 1])
    _, loss = fast_rule(layer, x, labels, whole(labels))
    assert not loss.isfinite()


def test_shares_add_up_to_the_batch():
    plain, _ = pair(SHAPES["200-200 k3 s1 16"], Kernels())
    x, labels = batch_for(plain, images=5)
    for rule in (plain_rule, fast_rule):
        _, layer = pair(SHAPES["200-200 k3 s1 16"], Kernels("winograd", "winograd"))
        _, loss = rule(layer, x, labels, whole(labels))
        gradient = layer.weight.grad.clone()
        losses, gradients = [], []
        for rows in (slice(0, 2), slice(2, 5)):
            share = Share(step=0, batch_size=5, first=rows.start)
            losses.append(rule(layer, x[rows], labels[rows], share)[1])
            gradients.append(layer.weight.grad.clone())
        assert relative(losses[0] + losses[1], loss) < 1e-6
        assert relative(gradients[0] + gradients[1], gradient) < 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_lies_in_memory_as_the_weight_does(dtype: torch.dtype, device: torch.device):
    for shape, spec in SHAPES.items():
        for kernels in all_methods(spec, device, dtype):
            _, layer = pair(spec, kernels, dtype=dtype, device=device)
            x = torch.randn(1, spec.in_channels, spec.in_size, spec.in_size, device=device)
            labels = torch.zeros(1, dtype=torch.int64, device=device)
            fast_rule(layer, x, labels, whole(labels))
            assert layer.weight.grad.stride() == layer.weight.stride(), (shape, kernels)


def test_a_gpu_unfolds_images_of_few_channels_in_float32():
    image, features = SHAPES["3-100 k5 s1 32"], SHAPES["100-100 k3 s1 32"]
    cuda = torch.device("cuda")
    assert methods(image, cuda, torch.float32) == ("unfold",)
    assert methods(image, cuda, torch.bfloat16) == ("conv", "unfold")
    assert methods(features, cuda, torch.float32) == ("conv", "unfold")


class TestWithoutACompiler:
    @pytest.fixture(autouse=True)
    def no_compiler(self, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path))
        native.library.cache_clear()
        native.missing.cache_clear()
        yield
        native.library.cache_clear()
        native.missing.cache_clear()

    def test_the_reason_is_named(self):
        assert native.missing() == "$CXX (no-such-compiler) is not there"

    def test_winograd_is_no_choice(self):
        assert methods(SHAPES["100-100 k3 s1 32"], CPU, torch.float32) == METHODS[:2]

    def test_steps_are_the_plain_rules_all_the_same(self):
        for kernels in (Kernels("conv", "unfold"), Kernels("unfold", "conv")):
            plain, fast = pair(SHAPES["200-200 k3 s1 16"], kernels)
            x, labels = batch_for(plain, images=2)
            assert_the_same_step(plain, fast, x, labels, within=1e-5)


def test_a_compiler_that_fails_is_named_with_what_it_says(monkeypatch, tmp_path):
    compiler = tmp_path / "cxx"
    compiler.write_text("#!/bin/sh\necho 'out of order' >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(native.NoKernelsError, match="fails .out of order."):
        native.library.__wrapped__()
    assert not list((tmp_path / "cache").iterdir())


def test_a_compiler_that_does_not_know_the_tile_units_compiles_the_rest(monkeypatch, tmp_path):
    compiler = tmp_path / "cxx"
    compiler.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *WITHOUT_AMX*) exec {native.find_compiler()} "$@";; esac\n'
        "echo 'amx.cpp: In function:' >&2; echo 'amx.cpp:9: error: unknown' >&2; exit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "cache"))
    assert native.library.__wrapped__().amx_permitted() == 0
    compiler.write_text(compiler.read_text().replace("WITHOUT_AMX", "nothing"))
    monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "another"))
    with pytest.raises(native.NoKernelsError, match="fails .amx.cpp:9: error: unknown."):
        native.library.__wrapped__()
