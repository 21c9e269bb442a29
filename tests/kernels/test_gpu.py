"""The GPU's kernels: on a GPU where there is one, else in Triton's interpreter, much slower."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from rayff.config.kernels import parse_kernels
from rayff.config.local_loss import LossConfig
from rayff.config.recipe import Recipe
from rayff.kernels import convolution, gpu, pointwise, pooled
from rayff.kernels.cuda_graph import rerun
from rayff.kernels.dropout_bits import philox, philox_bytes
from rayff.learning.analytic import analytic_forward, analytic_step
from rayff.learning.autograd import LayerStep, autograd_step
from rayff.learning.chain import Activations, Chain, join
from rayff.learning.generators import Share, dropout_state
from rayff.learning.layer import CWConv
from rayff.learning.optimizers import optimizer_class
from rayff.learning.recorded import RecordedStep
from rayff.learning.step import ChainStep
from rayff.learning.updates import ImmediateUpdates
from rayff.models.architecture import Architecture, LayerSpec
from rayff.models.zoo import architecture
from tests.helpers.layers import relative

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WORD = 2**32 - 1

with_kernels = pytest.mark.skipif(
    not (ON_GPU or INTERPRETED), reason="runs in Triton's interpreter, in a process of its own"
)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter


@pytest.mark.skipif(ON_GPU or INTERPRETED, reason="the kernels run in this process")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
@pytest.mark.slow
def test_the_kernels_in_the_interpreter():
    """Triton reads the variable when it is imported, which other tests may have done already."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def features(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(*shape, device=DEVICE).to(dtype)
    return made.contiguous(memory_format=torch.channels_last)


def last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1)


def gaps(tensor: Tensor) -> Tensor:
    return gpu.with_gaps(tensor)[:, tensor.shape[1] :]


def wide_pitch(channels: int, dtype: torch.dtype) -> int:
    """Leave gaps in float32 as well."""
    return -(-channels // 16) * 16


def gpu_state(layer: int, share: Share, seed: int = 1) -> Tensor:
    """Return the dropout state of a GPU, in host memory."""
    return dropout_state(seed, layer, share, 0, torch.device("cuda"))


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the authors' known answers
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((WORD,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0_A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(
    counter: tuple[int, ...], key: int, words: tuple[int, ...]
):
    signed = torch.tensor(key - 2**64 if key >= 2**63 else key)
    found = philox(signed, tuple(torch.tensor([word]) for word in counter))  # type: ignore[arg-type]
    assert found.flatten().tolist() == list(b"".join(word.to_bytes(4, "little") for word in words))


def test_a_byte_has_the_place_that_its_pixel_and_channel_give():
    state = gpu_state(2, Share(step=7, batch_size=9, first=5), seed=3)
    drawn = philox_bytes(state, torch.Size((2, 20, 3, 2)))
    for image, row, column, channel in ((0, 0, 0, 0), (1, 2, 1, 19), (0, 1, 1, 16), (1, 0, 0, 7)):
        pixel = (5 + image) * 6 + row * 2 + column
        counter = (pixel * 2 + channel // 16, 0, 7, 0)
        block = philox(state[0], tuple(torch.tensor([word]) for word in counter))  # type: ignore[arg-type]
        assert drawn[image, row, column, channel] == block[0, channel % 16]


@with_kernels
@settings(max_examples=5 if ON_GPU else 15)  # a GPU compiles for each
@given(
    images=st.integers(1, 3),
    classes=st.integers(2, 12),
    group=st.integers(1, 12),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    dropped=st.sampled_from([0, 51, 255]),
    wide=st.booleans(),
)
def test_the_pointwise_pass_is_the_one_in_torch(
    images: int, classes: int, group: int, size: tuple[int, int], dropped: int, wide: bool
):
    y = features(images, classes * group, *size)
    labels = torch.arange(images, device=DEVICE) % classes
    drawn = gpu_state(4, Share(step=2**33 + 5, batch_size=images + 4, first=3))
    state = drawn.to(DEVICE) if dropped else None
    with pytest.MonkeyPatch.context() as patched:
        if wide:
            patched.setattr(gpu, "pitch", wide_pitch)
        found = gpu.pointwise(gpu.pitched(y), classes, state, dropped, labels, 5)
        evaluated = gpu.pointwise(gpu.pitched(y), classes, None, 0, None, 1)
    if state is not None:
        assert torch.equal(gpu.drawn_bytes(state, y.shape), philox_bytes(state, y.shape))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pointwise, "drawn_bytes", philox_bytes)
        expected = pointwise._torch(last(y).double(), classes, state, dropped, labels, 5)
    assert relative(last(found[0]), expected[0]) < 1e-5
    assert relative(found[1], expected[1]) < 1e-6
    # softmax minus one-hot cancels where a class is nearly certain, so its error is absolute
    largest = 256 / (256 - dropped) / (5 * y[0].numel() // classes)
    assert (last(found[2]) - expected[2]).abs().max() < 2e-6 * largest
    assert torch.equal(last(found[2]) != 0, expected[2] != 0)
    assert relative(found[3], expected[3]) < 1e-5
    assert not gaps(found[0]).any()
    assert not gaps(found[2]).any()
    undropped = pointwise._torch(last(y).double(), classes, None, 0, None, 1)
    assert relative(last(evaluated[0]), undropped[0]) < 1e-5
    assert relative(evaluated[1], undropped[1]) < 1e-6
    assert evaluated[2] is evaluated[3] is None


@with_kernels
@settings(max_examples=5 if ON_GPU else 15)
@given(
    images=st.integers(1, 2),
    groups=st.integers(1, 4),
    group=st.integers(2, 12),  # group norm needs two elements
    cells=st.integers(1, 3),
    cell=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dropped=st.sampled_from([0, 51]),
    squares=st.booleans(),
    wide=st.booleans(),
)
def test_moments_and_their_gradient_are_those_in_torch(
    images: int,
    groups: int,
    group: int,
    cells: int,
    cell: tuple[int, int],
    dropped: int,
    squares: bool,
    wide: bool,
):
    y = features(images, groups * group, cells * cell[0], cells * cell[1])
    drawn = gpu_state(4, Share(step=5, batch_size=images))
    state = drawn.to(DEVICE) if dropped else None
    coefficients = features(2 * images, groups * group, cells, cells)
    base, slope = (last(each).contiguous() for each in coefficients.chunk(2))
    with pytest.MonkeyPatch.context() as patched:
        if wide:
            patched.setattr(gpu, "pitch", wide_pitch)
        masked, found, mean, square = gpu.pool_cells(
            gpu.pitched(y), groups, cells, squares, state, dropped
        )
        kept = masked.clone()
        at_y = gpu.cell_gradient(masked, base, slope if squares else None)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pooled, "drawn_bytes", philox_bytes)
        expected = pooled._torch(last(y).double(), groups, cells, squares, state, dropped)
    assert torch.equal(last(kept).double(), expected[0])
    assert relative(last(found), expected[1]) < 1e-4
    assert relative(mean, expected[2]) < 1e-5
    assert (square is None) is not squares
    if square is not None:
        assert relative(square, expected[3]) < 1e-5
    assert not gaps(found).any()

    def spread(coefficient: Tensor) -> Tensor:
        return last(interpolate(coefficient.permute(0, 3, 1, 2), y.shape[2:]))

    wanted = spread(base) + (spread(slope) * last(kept) if squares else 0.0)
    assert relative(last(at_y), torch.where(last(kept) > 0, wanted, 0.0)) < 1e-5


@with_kernels
@pytest.mark.parametrize("dropped", [0, 255])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_propagate(bad: float, dropped: int):
    y = features(2, 8, 2, 2)
    y[1, 3, 0, 1] = bad
    state = gpu_state(4, Share(step=0, batch_size=2))
    assert philox_bytes(state, y.shape)[1, 0, 1, 3] < 255, "is dropped, where anything is"
    found, goodness, _, losses = gpu.pointwise(
        *(y, 2, state.to(DEVICE) if dropped else None, dropped),
        *(torch.tensor([0, 1], device=DEVICE), 2),
    )
    assert not goodness[1].isfinite().all()
    assert not losses[1].isfinite()
    assert losses[0].isfinite()
    assert found[0].isfinite().all()


@with_kernels
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("index", [2, 4, 6, 8, 14])
def test_joins_have_the_bits_of_torchs(index: int, wide: bool, monkeypatch: pytest.MonkeyPatch):
    spec = architecture("resnet", num_classes=2, image_channels=3, width=4).layers[index]
    own = features(2, spec.out_channels, spec.out_size, spec.out_size)
    shortcut = features(2, spec.shortcut_channels, spec.shortcut_size, spec.shortcut_size)
    with monkeypatch.context() as without:
        without.setattr(gpu, "usable", lambda *tensors: False)
        expected = join(own, shortcut, spec)
    if wide:
        monkeypatch.setattr(gpu, "pitch", wide_pitch)
    found = gpu.join(gpu.pitched(own), gpu.pitched(shortcut), spec)
    assert torch.equal(found, expected)
    assert not gaps(found).any()


@with_kernels
@pytest.mark.parametrize("channels", [3, 20])
def test_pools_have_the_bits_of_torchs(channels: int):
    square = features(2, channels, 4, 4)
    assert torch.equal(gpu.pool(square), torch.nn.functional.avg_pool2d(square, 2))


@with_kernels
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize("channels", [3, 20])
def test_patches_are_those_of_torch(
    kernel: int, stride: int, channels: int, monkeypatch: pytest.MonkeyPatch
):
    spec = LayerSpec(
        index=0,
        in_channels=channels,
        out_channels=8,
        kernel_size=kernel,
        stride=stride,
        in_size=6,
    )
    x = features(2, channels, 6, 6)
    expected = convolution.unfold(x.cpu(), spec)
    assert torch.equal(gpu.unfold(x, spec).cpu(), expected)
    monkeypatch.setattr(gpu, "pitch", wide_pitch)
    assert torch.equal(gpu.unfold(gpu.pitched(x), spec).cpu(), expected)


def test_filters_for_gaps_change_no_number(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "pitch", wide_pitch)
    x, weight = features(2, 5, 6, 6), features(7, 5, 3, 3)
    filters = gpu.filters_with_gaps(weight, gpu.pitched(x))
    assert filters.shape == (16, 16, 3, 3)
    found = torch.nn.functional.conv2d(gpu.with_gaps(gpu.pitched(x)), filters, padding=1)
    assert relative(found[:, :7], torch.nn.functional.conv2d(x, weight, padding=1)) < 1e-6
    assert not found[:, 7:].any()


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels do the work on any device, with gaps in float32 too."""
    monkeypatch.setattr(gpu, "usable", lambda *tensors: True)
    monkeypatch.setattr(gpu, "pitch", wide_pitch)


def small(name: str) -> Architecture:
    """Return a narrow network for images whose sides are no power of two."""
    return architecture(name, num_classes=2, image_channels=3, image_size=24, width=6)


@with_kernels
@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("kernels", ["conv/unfold", "unfold/conv"])
@pytest.mark.parametrize(
    ("name", "first", "end", "loss"),
    [
        ("resnet", 0, 2, "goodness"),
        ("resnet", 4, 7, "goodness"),
        ("vgg", 1, 4, "goodness"),
        ("resnet", 4, 7, "linear_similarity"),
        ("vgg", 1, 4, "channel_matrix"),
    ],
)
def test_a_chain_learns_as_by_the_autograd_step(
    name: str, first: int, end: int, loss: str, kernels: str
):
    network = small(name)[first:end]
    chain = Chain.build(network, seed=1, loss=LossConfig(name=loss, head_dim=64)).to(DEVICE)
    for layer in chain.parts():
        for parameter in layer.loss.parameters():
            torch.nn.init.normal_(parameter.data)  # a head of zeros hands no gradient on
    for layer in chain.parts():
        layer.kernels = parse_kernels(kernels)[0]
    entering, labels = batch_for(network), torch.tensor([1, 0], device=DEVICE)

    def learned(step: LayerStep) -> list[Tensor]:
        found: list[Tensor] = []

        def visit(layer: CWConv, x: Tensor) -> Tensor:
            left, backward = step(layer, x, labels, 2, None)
            found.extend((left, backward(), *(p.grad for p in layer.parameters())))
            return left

        return [chain.walk(entering, visit).features, *found]

    for one, other in zip(learned(analytic_step), learned(autograd_step), strict=True):
        assert relative(one, other) < 1e-5
    fast, plain = (chain.evaluate(entering, each) for each in (analytic_forward, CWConv.forward))
    assert relative(fast[0].features, plain[0].features) < 1e-5
    assert relative(torch.stack(fast[1]), torch.stack(plain[1])) < 1e-5


def batch_for(network: Architecture) -> Activations:
    """Return two images as they enter a slice."""
    spec, shortcut = network[0], None
    if spec.join != "none":
        shortcut = features(2, spec.shortcut_channels, spec.shortcut_size, spec.shortcut_size)
    entering = features(2, spec.in_channels, spec.in_size, spec.in_size)
    return Activations(features=entering, shortcut=shortcut)


@with_kernels
@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("loss", ["goodness", "linear"])
def test_a_step_has_the_same_bits_for_every_memory_layout_of_its_input(loss: str):
    """From the layer before with gaps, from another stage without, and into a recording."""
    network = small("resnet")[4:7]
    activations, labels = batch_for(network), torch.tensor([1, 0], device=DEVICE)

    def learned(way: str) -> list[Tensor]:
        chain = Chain.build(network, seed=1, loss=LossConfig(name=loss, head_dim=64)).to(DEVICE)
        chain = chain.to(memory_format=torch.channels_last)
        optimizers = {
            layer.spec.index: optimizer_class("adamw")(layer.parameters(), Recipe(lr=0.01))
            for layer in chain.parts()
        }
        step = ChainStep(chain, analytic_step, ImmediateUpdates(optimizers))
        if way == "recorded":
            recorded = RecordedStep(step, optimizers, activations, labels, rerun)
            recorded(activations, labels, Share(step=0, batch_size=2))
        else:
            pitched = activations.map(gpu.pitched)
            step(pitched if way == "pitched" else activations, labels, 2, {})
        return [layer.weight.detach() for layer in chain.parts()]

    for weights in zip(*map(learned, ("without gaps", "recorded", "pitched")), strict=True):
        assert all(torch.equal(weights[0], other) for other in weights[1:])
