"""Winograd's convolution (Lavin and Gray, 2016) and its weight gradient, on a CPU.

    y  = At [ sum over inputs  (G w Gt) * (Bt x B) ] A      for each tile of M x M outputs
    dw = Gt [ sum over tiles   (A dy At) * (Bt x B) ] G

The sums are matrix products, one for each of the N x N places of a tile (N = M + R - 1, kernel
R x R): N^2 multiplications where the plain convolution has (M R)^2. Shapes: T tiles, K channels.

Where the images are bfloat16, so are the gradient's tiles, whose rounding moves it by 0.5 to 2%;
those of 5x5 kernels, which it would move by 4%, stay float32. So do the convolution's own:
rounding them would turn over the sign of activations near zero, and the gradient would follow each
with all of its size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rayff.kernels import native
from rayff.models.architecture import LayerSpec

_LEAST_BLOCK, _MOST_BLOCK = 4 * 2**20, 32 * 2**20
"""Bytes of the tiles that are worked on at a time: as few as a cache holds, but enough that
reading all transformed filters for them, again and again, does not count."""


def fits(spec: LayerSpec) -> bool:
    """Return whether the method can compute a layer."""
    shape = (spec.kernel_size, spec.stride)
    entering = spec.in_size // 2 if spec.pool else spec.in_size
    whole = spec.out_size % 2 == 0 and entering == spec.out_size * spec.stride
    return shape in ((3, 1), (5, 1), (3, 2)) and whole


DTYPES = (torch.float32, torch.bfloat16)
"""Formats of images."""


class _Tiling:
    """How one layer with so many images is cut into tiles, a few images at a time.

    A 3x3 kernel with stride 2 is a 2x2 kernel with stride 1 over the four phases of the images
    (rows and columns, even and odd), whose channels lie side by side.

    Args:
        spec: the layer.
        images: how many.
        dtype: of the tiles.
    """

    def __init__(self, spec: LayerSpec, images: int, dtype: torch.dtype) -> None:
        self.spec = spec
        self.dtype = dtype
        self.phases = spec.stride**2
        self.kernel = spec.kernel_size if spec.stride == 1 else 2
        self.entering = self.phases * spec.in_channels
        self.leaving = spec.out_channels
        # bfloat16 loses most where padding fills much of the tiles
        padded = dtype == torch.bfloat16 and self.kernel == 3 and spec.out_size == 4
        self.outputs = 2 if spec.out_size % 4 or padded else 4
        self.tiles_each = (spec.out_size // self.outputs) ** 2
        self.places = (self.outputs + self.kernel - 1) ** 2
        filters = dtype.itemsize * self.places * self.entering * self.leaving
        each = dtype.itemsize * self.places * self.tiles_each * (self.entering + self.leaving)
        wanted = min(max(3 * filters, _LEAST_BLOCK), _MOST_BLOCK)
        self.size = max(1, min(images, wanted // each))
        self.blocks = [
            slice(start, min(start + self.size, images)) for start in range(0, images, self.size)
        ]

    def tiles(self, name: str, block: slice, channels: int) -> Tensor:
        """Return memory for a block's tiles, (N * N, T, K)."""
        tiles = (block.stop - block.start) * self.tiles_each
        return native.scratch(name, self.dtype, self.places, tiles, channels)

    def call(self, kind: str, source: Tensor, target: Tensor, count: int, channels: int) -> None:
        """Call a transform of the kernels on so many images or filters."""
        formats = (str(tensor.dtype).removeprefix("torch.") for tensor in (source, target))
        name = "_".join((kind, str(self.outputs), str(self.kernel), *formats))
        native.call(name, source, target, count, self.spec.out_size, channels)

    def filters(self, weight: Tensor) -> Tensor:
        """Return the weights (K, K', R, R) transformed, (N * N, entering, leaving)."""
        taps = weight.permute(0, 2, 3, 1)
        if self.phases > 1:  # tap u of 4, the first one zero, is tap u // 2 of phase u % 2
            taps = F.pad(taps, (0, 0, 1, 0, 1, 0)).view(self.leaving, 2, 2, 2, 2, -1)
            taps = taps.permute(0, 1, 3, 2, 4, 5)
        found = native.scratch("filters", self.dtype, self.places, self.leaving, self.entering)
        self.call("filter", taps.contiguous(), found, self.leaving, self.entering)
        return found.transpose(1, 2)

    def weights(self, filters: Tensor) -> Tensor:
        """Return what `filters` does to a gradient, backwards: (K, K', R, R), channels last."""
        taps = torch.empty(self.leaving, self.kernel, self.kernel, self.entering)
        self.call("filter_gradient", filters, taps, self.leaving, self.entering)
        if self.phases > 1:
            taps = taps.view(self.leaving, 2, 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5)
            taps = taps.reshape(self.leaving, 4, 4, -1)[:, 1:, 1:].contiguous()
        return taps.permute(0, 3, 1, 2)


def convolve(x: Tensor, weight: Tensor, spec: LayerSpec) -> Tensor:
    """Return the convolution of x (B, K', H, W) with weight (K, K', R, R), channels last.

    It lies in memory that this thread's next convolution uses again.
    """
    images = x.permute(0, 2, 3, 1).contiguous()
    tiling = _Tiling(spec, len(x), torch.float32)
    filters = tiling.filters(weight)
    y = native.scratch("y", x.dtype, len(x), spec.out_size, spec.out_size, spec.out_channels)
    for block in tiling.blocks:
        tiles = tiling.tiles("entering", block, tiling.entering)
        products = tiling.tiles("leaving", block, tiling.leaving)
        tiling.call("input", images[block], tiles, block.stop - block.start, spec.in_channels)
        torch.bmm(tiles, filters, out=products)
        tiling.call("output", products, y[block], block.stop - block.start, spec.out_channels)
    return y.permute(0, 3, 1, 2)


def weight_gradient(x: Tensor, gradient: Tensor, spec: LayerSpec) -> Tensor:
    """Return the gradient of the weights, (K, K', R, R), channels last.

    Args:
        x: what was convolved, (B, K', H, W).
        gradient: of the loss at the convolution's output, (B, K, H, W).
        spec: the layer.
    """
    images, slopes = x.permute(0, 2, 3, 1).contiguous(), gradient.permute(0, 2, 3, 1).contiguous()
    dtype = torch.float32 if spec.kernel_size == 5 else x.dtype
    tiling = _Tiling(spec, len(x), dtype)
    sums = (tiling.places, tiling.leaving, tiling.entering)
    total_dtype = dtype if len(tiling.blocks) == 1 else torch.float32
    total = native.scratch("total", total_dtype, *sums)
    for number, block in enumerate(tiling.blocks):
        tiles = tiling.tiles("entering", block, tiling.entering)
        factors = tiling.tiles("leaving", block, tiling.leaving)
        count = block.stop - block.start
        tiling.call("input", images[block], tiles, count, spec.in_channels)
        tiling.call("gradient", slopes[block], factors, count, spec.out_channels)
        if total_dtype == dtype:  # beta 0 ignores what lies in the memory
            total.baddbmm_(factors.transpose(1, 2), tiles, beta=int(number > 0))
            continue
        product = native.scratch("product", dtype, *sums)
        torch.bmm(factors.transpose(1, 2), tiles, out=product)
        if number:
            total += product
        else:
            total.copy_(product)
    return tiling.weights(total)
