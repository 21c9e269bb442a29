"""Muon (Jordan et al., 2024) for the layers' matrices, by the function of torch.optim.Muon.

The update of a matrix is its momentum with all singular values drawn to 1. A convolution's weight
(K, K', R, R) is the matrix (K, K' R R). Like the other built-in optimizers it does without the
class of torch.optim, whose construction imports torch's compiler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, DEFAULT_NS_STEPS, EPS, muon

from rayff.learning.optimizers import FusedAdamW, Shape


class Muon(FusedAdamW):
    """torch.optim.Muon(adjust_lr_fn="match_rms_adamw"); AdamW for biases and scalars.

    With that adjustment an update has the size of AdamW's (Liu et al., 2025), so one learning rate
    and one weight decay serve both.
    """

    @classmethod
    def state_shapes(cls, shape: Shape) -> dict[str, Shape]:
        """Return the momentum of the matrix, or AdamW's state."""
        if len(shape) < 2:
            return super().state_shapes(shape)
        return {"momentum_buffer": (shape[0], math.prod(shape[1:]))}

    def _update(self, state: Mapping[Tensor, dict[str, Tensor]]) -> None:
        vectors = {parameter: own for parameter, own in state.items() if parameter.ndim < 2}
        if vectors:
            super()._update(vectors)
        for parameter, own in state.items():
            if parameter.ndim >= 2 and parameter.grad is not None:
                self._update_matrix(parameter, parameter.grad.flatten(1), own)

    def _update_matrix(self, parameter: Tensor, gradient: Tensor, own: dict[str, Tensor]) -> None:
        """Step along the gradient (K, N) of a parameter (K, ...) of K N elements."""
        if not own:
            own["momentum_buffer"] = torch.zeros_like(gradient)
        # torch's function wants the learning rate as a number, which a CUDA graph would keep: it
        # finds the update for a learning rate of 1
        update = torch.zeros_like(gradient)
        muon(
            *([update], [gradient], [own["momentum_buffer"]]),
            lr=1.0,
            weight_decay=0.0,
            momentum=0.95,
            nesterov=True,
            ns_coefficients=(DEFAULT_A, DEFAULT_B, DEFAULT_C),
            ns_steps=DEFAULT_NS_STEPS,
            eps=EPS,
            adjust_lr_fn="match_rms_adamw",
            has_complex=False,
        )
        if self.weight_decay:
            parameter.mul_(1 - self.lr * self.weight_decay)
        parameter.add_(update.mul_(self.lr).view_as(parameter))
