"""The loss "predsim" against its formulas, written out in float64."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rayff.config.local_loss import LossConfig
from rayff.learning.autograd import autograd_step
from rayff.learning.layer import CWConv
from rayff.learning.losses import local_loss, make_loss
from rayff.learning.losses.predsim import Predsim, pooled_sides, pooling_window
from rayff.models.architecture import LayerSpec, ModuleSpec

CLASSES = 3


def spec_of(*shape: int) -> ModuleSpec:
    return ModuleSpec(
        **{"index": 2, "in_shape": (1,), "num_weights": 1, "num_products": 1},
        **{"out_shape": shape, "feature_shape": shape},
    )


def make(shape: tuple[int, ...], seed: int = 0, **options: object) -> Predsim:
    torch.manual_seed(seed)
    loss = make_loss(LossConfig(name="predsim", **options), spec_of(*shape), CLASSES)  # type: ignore[arg-type]
    assert isinstance(loss, Predsim)
    torch.nn.init.normal_(loss.head.weight)  # with weights of zero the map has no gradient
    return loss


def pooled_by_hand(h: Tensor, rows: int, columns: int) -> Tensor:
    """Return the means of equal cells, (B, K * rows * columns)."""
    images, channels, height, width = h.shape
    cells = h.reshape(images, channels, rows, height // rows, columns, width // columns)
    return cells.mean(dim=(3, 5)).reshape(images, -1)


def convolved_by_hand(h: Tensor, weight: Tensor) -> Tensor:
    """Return a 3x3 convolution with a border of zeros, shift by shift."""
    images, channels, height, width = h.shape
    padded = h.new_zeros(images, channels, height + 2, width + 2)
    padded[:, :, 1:-1, 1:-1] = h
    total = h.new_zeros(images, len(weight), height, width)
    for row in range(3):
        for column in range(3):
            shifted = padded[:, :, row : row + height, column : column + width]
            total = total + torch.einsum("bkhw,ck->bchw", shifted, weight[:, :, row, column])
    return total


def deviations_by_hand(values: Tensor) -> Tensor:
    """Return the standard deviation of each row of (B, K, N), that of a sample."""
    centred = values - values.mean(dim=2, keepdim=True)
    return (centred.square().sum(dim=2) / (values.shape[2] - 1)).sqrt()


def cosines_by_hand(rows: Tensor) -> Tensor:
    centred = rows - rows.mean(dim=1, keepdim=True)
    lengths = centred.square().sum(dim=1).sqrt()
    return (centred @ centred.T) / (lengths[:, None] * lengths[None, :])


def loss_by_hand(
    logits: Tensor, rows: Tensor, labels: Tensor, weight: float, class_weights: Tensor | None
) -> Tensor:
    """Return (1 - w) CE + w MSE of the batch."""
    picked = -logits.log_softmax(dim=1)[range(len(labels)), labels]
    if class_weights is not None:
        picked = picked * class_weights[labels]
    targets = cosines_by_hand(torch.eye(CLASSES, dtype=torch.float64)[labels])
    similarity = (cosines_by_hand(rows) - targets).square().mean()
    return (1 - weight) * picked.mean() + weight * similarity


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(2, 6),
    channels=st.integers(3, 6),  # two centred numbers have a cosine of 1 or -1
    side=st.sampled_from([2, 4, 8]),
    head_dim=st.sampled_from([1, 8, 48, 2048]),
    weight=st.sampled_from([None, 0.0, 0.3, 1.0]),
    weighted=st.booleans(),
    seed=st.integers(0, 999),
)
def test_value_and_gradients_on_maps(
    images: int,
    channels: int,
    side: int,
    head_dim: int,
    weight: float | None,
    weighted: bool,
    seed: int,
):
    class_weights = (0.5, 1.0, 2.0) if weighted else None
    options = {"head_dim": head_dim, "similarity_weight": weight, "class_weights": class_weights}
    loss = make((channels, side, side), seed, **options)
    h = torch.randn(images, channels, side, side, requires_grad=True)
    labels = torch.randint(CLASSES, (images,))
    logits, losses = local_loss(loss, h, labels, CLASSES)
    assert losses is not None
    losses.mean().backward()

    exact = copy.deepcopy(loss).double()
    exact.zero_grad()
    wide = h.detach().double().requires_grad_()
    columns = exact.head.in_features // channels  # 1, 2, 4, ... cells, the rows halved first
    rows = 2 ** (int(math.log2(columns)) // 2)
    expected_logits = (
        pooled_by_hand(wide, rows, columns // rows) @ exact.head.weight.T + exact.head.bias
    )
    seen = deviations_by_hand(convolved_by_hand(wide, exact.similarity.weight).flatten(2))
    given_weights = None if class_weights is None else torch.tensor(class_weights).double()
    expected = loss_by_hand(
        expected_logits, seen, labels, 0.99 if weight is None else weight, given_weights
    )
    expected.backward()

    torch.testing.assert_close(logits.double(), expected_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.mean().double(), expected, rtol=1e-4, atol=1e-5)
    pairs = [(h.grad, wide.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(loss.parameters(), exact.parameters(), strict=True)]
    for found, wanted in pairs:
        if wanted is None:
            assert found is None or not found.any()
        else:
            scale = wanted.abs().max().item() + 1e-3
            torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("shape", [(5,), (6, 5)], ids=["features", "tokens"])
def test_value_and_gradients_on_features_and_tokens(shape: tuple[int, ...]):
    loss = make(shape)
    assert loss.similarity.weight.shape == (5, 5)
    h = torch.randn(4, *shape, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 2])
    logits, losses = local_loss(loss, h, labels, CLASSES)
    assert losses is not None
    losses.mean().backward()

    exact = copy.deepcopy(loss).double()
    exact.zero_grad()
    wide = h.detach().double().requires_grad_()
    seen = wide @ exact.similarity.weight.T
    mean = wide
    if len(shape) == 2:
        seen, mean = deviations_by_hand(seen.transpose(1, 2)), wide.mean(dim=1)
    expected_logits = mean @ exact.head.weight.T + exact.head.bias
    expected = loss_by_hand(expected_logits, seen, labels, 0.99, None)
    expected.backward()
    torch.testing.assert_close(logits.double(), expected_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses.mean().double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(h.grad.double(), wide.grad, rtol=1e-3, atol=1e-6)
    for found, wanted in zip(loss.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=1e-3, atol=1e-6)


# what the authors' rule gives: the height of the window is doubled first, then the width
@pytest.mark.parametrize(
    ("channels", "side", "head_dim", "window"),
    [
        (128, 32, 2048, (8, 8)),
        (256, 32, 2048, (16, 8)),
        (256, 16, 2048, (8, 4)),
        (512, 16, 2048, (8, 8)),
        (512, 8, 2048, (4, 4)),
        (512, 4, 2048, (2, 2)),
        (512, 2, 2048, (1, 1)),
        (128, 32, 4096, (8, 4)),
        (3000, 8, 2048, (8, 8)),  # one pixel is left, however many channels there are
        (100, 7, 400, (4, 4)),
    ],
)
def test_the_map_is_pooled_until_the_head_is_small(
    channels: int, side: int, head_dim: int, window: tuple[int, int]
):
    assert pooling_window(channels, (side, side), head_dim) == window
    rows, columns = pooled_sides((side, side), window)
    loss = make((channels, side, side), head_dim=head_dim)
    assert loss.head.in_features == channels * rows * columns
    logits, _ = loss(torch.randn(2, channels, side, side))
    assert logits.shape == (2, CLASSES)


def test_the_head_begins_with_weights_of_zero():
    torch.manual_seed(0)
    loss = make_loss(LossConfig(name="predsim"), spec_of(4, 8, 8), CLASSES)
    first, second = loss(torch.randn(2, 4, 8, 8))[0]
    assert torch.equal(first, second)
    assert loss.similarity.weight.abs().min() > 0


def test_evaluation_does_not_compute_the_similarity():
    loss = make((4, 8, 8))
    loss.similarity.register_forward_hook(lambda *_: pytest.fail("not needed"))
    logits, losses = loss(torch.randn(2, 4, 8, 8))
    assert logits.shape == (2, CLASSES)
    assert losses is None


def test_constant_channels_and_single_images_have_finite_gradients():
    loss = make((4, 8, 8))
    for h in (torch.zeros(3, 4, 8, 8), torch.ones(3, 4, 8, 8), torch.randn(1, 4, 8, 8)):
        seen = h.clone().requires_grad_()
        _, losses = loss(seen, torch.zeros(len(h), dtype=torch.int64))
        losses.sum().backward()
        assert seen.grad is not None
        assert seen.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolutions_learn_by_it(dtype: torch.dtype):
    spec = LayerSpec(index=0, in_channels=2, out_channels=6, kernel_size=3, in_size=8)
    layer = CWConv(spec, CLASSES, dtype=dtype, loss=LossConfig(name="predsim"))
    x = torch.randn(4, 2, 8, 8)
    labels = torch.tensor([0, 1, 2, 2])
    optimizer = torch.optim.AdamW(layer.parameters(), 0.01)
    losses = []
    for _ in range(60):
        _, backward = autograd_step(layer, x, labels, 4)
        losses.append(backward().item())
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def test_bfloat16_convolves_in_bfloat16_and_compares_in_float32():
    loss = make((6, 8, 8))
    h = torch.randn(4, 6, 8, 8)
    labels = torch.tensor([0, 1, 2, 2])
    logits, losses = loss(h, labels)
    loss.dtype = torch.bfloat16
    narrow_logits, narrow = loss(h, labels)
    assert torch.equal(narrow_logits, logits)
    assert not torch.equal(narrow, losses)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, losses, rtol=0.02, atol=0.02)
