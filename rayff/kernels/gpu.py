"""Triton kernels where torch is slow or has none: the pointwise pass, joins, pools, patches.

The pointwise pass takes three kernels, as an image's groups are spread over more memory than one
program of a GPU can hold: the first finds the statistics of parts of an image and puts dropout
into place, the second joins them to goodness, loss and what normalises a group, and the third
writes features and gradient.

The units of a GPU multiply bfloat16 in vectors of 16 bytes. Where the channels do not fill them,
memory is pitched: between pixels lies a gap, which holds zeros, so that convolutions may take it
for channels. A convolution with 100 channels takes 2.5 times as long without (seen on an H200).
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rayff.models.architecture import LayerSpec

EPSILON = 1e-5
"""Of group norm, torch's default."""
_TILE = 16384
"""Elements of a program, at most: 128 in the registers of each of its threads."""


@functools.cache
def missing() -> str | None:
    """Return why the GPU's kernels cannot be used, or None where they can."""
    try:
        pointwise(torch.zeros(1, 2, 1, 1, device="cuda"), 2, None, 0, None, 1)
        torch.cuda.synchronize()
    except Exception as error:  # Triton, its compiler and the driver have errors of any kind
        return " ".join(str(error).split()) or type(error).__name__
    return None


def usable(*tensors: Tensor) -> bool:
    """Return whether the kernels can work on these: float32 or bfloat16 on a GPU, no autograd."""
    dtypes = {tensor.dtype for tensor in tensors}
    known = dtypes in ({torch.float32}, {torch.bfloat16})
    taped = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return all(tensor.is_cuda for tensor in tensors) and known and not taped and missing() is None


def pitch(channels: int, dtype: torch.dtype) -> int:
    """Return the elements from one pixel to the next with so many channels."""
    return channels if channels % (16 // dtype.itemsize) == 0 else -(-channels // 16) * 16


def empty_pitched(shape: torch.Size, like: Tensor) -> Tensor:
    """Return memory for features (B, K, H, W), channels last and pitched, with what it held."""
    images, channels, height, width = shape
    rows = like.new_empty(images, height, width, pitch(channels, like.dtype))
    return rows[..., :channels].permute(0, 3, 1, 2)


def pitched(features: Tensor) -> Tensor:
    """Return a copy of features (B, K, H, W) in pitched memory, whose gaps hold zeros."""
    copy = empty_pitched(features.shape, features)
    with_gaps(copy).zero_()
    return copy.copy_(features)


def as_pitched(features: Tensor) -> Tensor:
    """Return features that lie in pitched memory, and of others a copy that does.

    So a convolution gives the same bits for features from the layer before and from another stage.
    """
    rows = _rows(features)
    return rows if _pitch(rows) == pitch(rows.shape[1], rows.dtype) else pitched(rows)


def with_gaps(features: Tensor) -> Tensor:
    """Return the features with the gaps of their memory as channels, (B, pitch, H, W)."""
    features = _rows(features)
    images, _, height, width = features.shape
    return features.as_strided((images, _pitch(features), height, width), features.stride())


def filters_with_gaps(weight: Tensor, x: Tensor) -> Tensor:
    """Return filters (K, K', R, R) for all of `with_gaps(x)`, whose output is pitched."""
    channels, in_channels, height, width = weight.shape
    outs, ins = pitch(channels, weight.dtype), _pitch(_rows(x))
    if (outs, ins) == (channels, in_channels):
        return weight
    filters = weight.new_zeros(outs, height, width, ins).permute(0, 3, 1, 2)
    filters[:channels, :in_channels] = weight
    return filters


def _pitch(features: Tensor) -> int:
    return features.stride(3)


def _rows(features: Tensor) -> Tensor:
    """Return features (B, K, H, W) as the kernels can see them: rows of one pitch."""
    images, channels, height, width = features.shape
    step = features.stride(3)
    rows = (height * width * step, 1, width * step, step)
    if features.stride() == rows and step in (channels, pitch(channels, features.dtype)):
        return features
    dense = features.contiguous(memory_format=torch.channels_last)
    return dense.as_strided(
        dense.shape, (height * width * channels, 1, width * channels, channels)
    )


def pointwise(
    y: Tensor,
    num_classes: int,
    dropout_state: Tensor | None,
    dropped: int,
    labels: Tensor | None,
    batch_size: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return features (pitched), goodness, gradient (in y's place) and losses.

    The arguments are those of `rayff.kernels.pointwise.pointwise`.
    """
    kernels = _kernels()
    y = _rows(y)
    images, channels, height, width = y.shape
    pixels, group = height * width, channels // num_classes
    features = empty_pitched(y.shape, y)
    padded, rows, parts = _parts(pixels, max(_pitch(y), _pitch(features)))
    if dropout_state is None or labels is None:
        dropped = 0
    scale = 256 / (256 - dropped)
    wide: dict[str, Any] = {"dtype": torch.float32, "device": y.device}
    partial = torch.empty(images, parts, 2, channels, **wide)
    normal = torch.empty(images, 3, num_classes, **wide)
    goodness = torch.empty(images, num_classes, **wide)
    losses = None if labels is None else torch.empty(images, **wide)
    shape = {"PIXELS": pixels, "CHANNELS": channels, "ROWS": rows}
    tile = {**shape, "PITCH": _pitch(y), "PADDED": padded}
    learns = labels is not None
    kernels.statistics[images, parts](y, dropout_state, partial, **tile, DROPPED=dropped)
    kernels.classes[images,](
        *(partial, labels, normal, goodness, losses),
        *(scale, scale / (batch_size * pixels * group), EPSILON),
        **shape,
        CLASSES=num_classes,
        PARTS=parts,
        MEMBERS=_power(parts * group),
        PADDED=_power(num_classes),
        LEARNS=learns,
    )
    kernels.outputs[images, parts](
        *(y, normal, features),
        **tile,
        CLASSES=num_classes,
        FEATURE_PITCH=_pitch(features),
        LEARNS=learns,
    )
    return features, goodness, y if learns else None, losses


def pool_cells(
    y: Tensor,
    groups: int,
    cells: int,
    squares: bool,
    dropout_state: Tensor | None,
    dropped: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return y with dropout's zeros, features (pitched) and the moments, (B, P, P, K).

    The arguments are those of `rayff.kernels.pooled.pool`.
    """
    kernels = _kernels()
    y = _rows(y)
    images, channels, height, width = y.shape
    high, wide = height // cells, width // cells
    if dropout_state is None:
        dropped = 0
    scale = 256 / (256 - dropped)
    features = empty_pitched(y.shape, y)
    float32: dict[str, Any] = {"dtype": torch.float32, "device": y.device}
    partial = torch.empty(images, cells**2, 2, channels, **float32)
    normal = torch.empty(images, 3, groups, **float32)
    mean = torch.empty(images, cells, cells, channels, **float32)
    square = torch.empty_like(mean) if squares else None
    shape = {"PIXELS": height * width, "CHANNELS": channels}
    padded, rows, parts = _parts(height * width, max(_pitch(y), _pitch(features)))
    kernels.cell_statistics[images, cells**2](
        *(y, dropout_state, partial, mean, square, scale),
        **shape,
        WIDTH=width,
        PITCH=_pitch(y),
        CELLS=cells,
        HIGH=high,
        WIDE=wide,
        ROWS=_power(wide),
        PADDED=padded,
        DROPPED=dropped,
        SQUARES=squares,
    )
    group_means = torch.empty(images, groups, **float32)
    kernels.classes[images,](
        *(partial, None, normal, group_means, None, scale, 0.0, EPSILON),
        **shape,
        CLASSES=groups,
        ROWS=high * wide,
        PARTS=cells**2,
        MEMBERS=_power(cells**2 * (channels // groups)),
        PADDED=_power(groups),
        LEARNS=False,
    )
    kernels.outputs[images, parts](
        *(y, normal, features),
        **shape,
        PITCH=_pitch(y),
        ROWS=rows,
        PADDED=padded,
        CLASSES=groups,
        FEATURE_PITCH=_pitch(features),
        LEARNS=False,
    )
    return y, features, mean, square


def cell_gradient(y: Tensor, base: Tensor, slope: Tensor | None) -> Tensor:
    """Return base + slope * y of each element's cell where y > 0, else 0, in y's place.

    `base` and `slope` are (B, P, P, K).
    """
    images, channels, height, width = y.shape
    cells = base.shape[1]
    padded, rows, parts = _parts(height * width, _pitch(y))
    _kernels().cell_gradient[images, parts](
        *(y, base, slope),
        PIXELS=height * width,
        WIDTH=width,
        CHANNELS=channels,
        PITCH=_pitch(y),
        CELLS=cells,
        HIGH=height // cells,
        WIDE=width // cells,
        ROWS=rows,
        PADDED=padded,
        SLOPED=slope is not None,
    )
    return y


def drawn_bytes(dropout_state: Tensor, shape: torch.Size) -> Tensor:
    """Return what `rayff.kernels.dropout_bits.philox_bytes` does."""
    images, channels, height, width = shape
    padded, rows, parts = _parts(height * width, channels)
    target = torch.empty(
        images, height, width, channels, dtype=torch.uint8, device=dropout_state.device
    )
    _kernels().draw[images, parts](
        *(target, dropout_state),
        PIXELS=height * width,
        CHANNELS=channels,
        ROWS=rows,
        PADDED=padded,
    )
    return target


def _parts(pixels: int, channels: int) -> tuple[int, int, int]:
    """Return, for an image's tiles, their width and height, and how many there are."""
    padded = max(16, _power(channels))
    rows = min(max(1, _TILE // padded), max(1, _power(pixels) // 2))
    return padded, rows, -(-pixels // rows)


def join(features: Tensor, shortcut: Tensor, spec: LayerSpec) -> Tensor:
    """Return what `rayff.learning.chain.join` does, pitched."""
    images, own, height, width = features.shape
    other = shortcut.shape[1]
    concat = spec.join == "concat"
    joined = empty_pitched(torch.Size((images, own + other * concat, height, width)), features)
    _join(_rows(features), _rows(shortcut), joined, other_first=own * concat)
    return joined


def pool(features: Tensor) -> Tensor:
    """Return the means of 2x2 pixels, pitched."""
    images, channels, height, width = features.shape
    pooled = empty_pitched(torch.Size((images, channels, height // 2, width // 2)), features)
    _join(None, _rows(features), pooled, other_first=0)
    return pooled


def _join(features: Tensor | None, shortcut: Tensor, target: Tensor, *, other_first: int) -> None:
    images, _, height, width = target.shape
    padded = max(16, _power(_pitch(target)))
    rows_in_all, rows = images * height * width, max(1, _TILE // 4 // padded)
    _kernels().join[-(-rows_in_all // rows),](
        *(shortcut if features is None else features, shortcut, target, rows_in_all),
        WIDTH=width,
        OWN=0 if features is None else features.shape[1],
        OWN_PITCH=0 if features is None else _pitch(features),
        OTHER=shortcut.shape[1],
        OTHER_PITCH=_pitch(shortcut),
        OTHER_FIRST=other_first,
        TARGET_PITCH=_pitch(target),
        POOLED=shortcut.shape[-1] != width,
        ROWS=rows,
        PADDED=padded,
    )


def unfold(x: Tensor, spec: LayerSpec) -> Tensor:
    """Return what `rayff.kernels.convolution.unfold` does."""
    x = _rows(x)
    rows_in_all, taps = len(x) * spec.out_size**2, spec.kernel_size**2
    target = x.new_empty(rows_in_all, taps * spec.in_channels)
    padded = max(16, _power(spec.in_channels))
    rows = max(1, _TILE // 4 // padded)
    _kernels().patches[-(-rows_in_all // rows),](
        *(x, target, rows_in_all),
        WIDTH=spec.out_size,
        STRIDE=spec.stride,
        KERNEL=spec.kernel_size,
        CHANNELS=spec.in_channels,
        PITCH=_pitch(x),
        ROWS=rows,
        PADDED=padded,
    )
    return target


def _power(number: int) -> int:
    """Return the least power of two that is not below."""
    return 1 << (number - 1).bit_length()


@functools.cache
def _kernels() -> ModuleType:
    from rayff.kernels import triton_kernels

    return triton_kernels
