"""What is tried of modules before a run starts: a step of each layer on a few random images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rayff.config.errors import UserError
from rayff.config.local_loss import LossConfig
from rayff.learning.autograd import autograd_step
from rayff.learning.chain import Chain
from rayff.learning.generators import seeded_generators
from rayff.learning.layer_state import check_savable, learned_parameters
from rayff.learning.losses import check_gradient, describe_error
from rayff.learning.module_layer import ModuleLayer, hand_on
from rayff.models.architecture import Architecture
from rayff.models.zoo import module_rows

CPU = torch.device("cpu")


def try_modules(
    network: Architecture, loss: LossConfig, *, replicated: bool, smallest_batch: int = 2
) -> None:
    """Train each layer of a network of modules once, on two random images, and classify them.

    Args:
        network: of modules.
        loss: of the run.
        replicated: whether several actors will share the batches of a layer.
        smallest_batch: images of the smallest batch, the last one of an epoch.

    Raises:
        UserError: a module or a loss fails, changes its input, or returns something else than its
            contract says; or replicas would change what it computes.
    """
    assert network.source is not None, "a network of modules"
    own = [row.loss for row in module_rows(network.source, network.num_classes)]
    if None not in own and loss.name not in (LossConfig.name, *own):
        raise UserError(
            f"--loss {loss.name}: every layer of --arch {network.name} has a loss of its own; "
            "leave --loss out"
        )
    for position in range(len(network)):
        (layer,) = Chain.build(network[position : position + 1], loss=loss).parts()
        assert isinstance(layer, ModuleLayer), "of a network of modules"
        module = type(layer.module).__name__
        where = f"layer {layer.spec.index} of --arch {network.name} ({module})"
        check_savable(layer, where)
        if not learned_parameters(layer):
            raise UserError(
                f"{where} has no parameters, and its loss has none: make it part of the layer "
                "after it"
            )
        try:
            _try(layer, where)
            if smallest_batch == 1:
                _check_single(layer, where)
            if replicated:
                _check_replicable(layer, where)
        except UserError:
            raise
        except Exception as error:  # the user's code may raise anything
            loss_name = type(layer.loss).__name__
            raise UserError(
                f"{where} fails with the loss {loss_name} on two images: "
                f"{describe_error(error, layer.module, layer.loss)}"
            ) from error


def _images(layer: ModuleLayer, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *layer.spec.in_shape, generator=generator)


def _labels(layer: ModuleLayer, count: int) -> Tensor:
    return torch.arange(count) % layer.num_classes


def _try(layer: ModuleLayer, where: str) -> None:
    x = _images(layer, 2)
    with seeded_generators(0, layer.spec.index, 0, CPU):
        h = layer.module(x)
        before = h._version
        hand_on(layer.module, h.detach())
        if h._version != before:
            raise UserError(
                f"{where} changes its output in place in hand_on, which the loss sees: return a "
                "new tensor"
            )
        if learned_parameters(layer.module):
            if not h.requires_grad:
                raise UserError(
                    f"{where} returns an output without a gradient, so that its parameters do not "
                    "learn: use them in forward without torch.no_grad and detach, or freeze them "
                    "with requires_grad_"
                )
            leaf = h.detach().requires_grad_()
            _, losses = layer.losses(leaf, _labels(layer, 2))
            assert losses is not None, "labels give losses"
            check_gradient(losses, leaf, f"the loss {type(layer.loss).__name__}", layer.spec)
        _, backward = autograd_step(layer, x, _labels(layer, 2), 2)
        backward()
        layer.eval()
        with torch.no_grad():
            layer(x)
        layer.train()
    if not torch.equal(x, _images(layer, 2)):
        raise UserError(
            f"{where} changes its input in place, which belongs to the layer before it: leave "
            "out inplace=True there"
        )


def _check_single(layer: ModuleLayer, where: str) -> None:
    """Raise a UserError where a layer cannot learn from one image, as batch norm cannot."""
    try:
        _losses(layer, 1, 0)
    except ValueError as error:
        raise UserError(
            f"the last batch of an epoch has 1 image, from which {where} cannot learn ({error}): "
            "use another --batch-size, or a --limit that leaves that image out"
        ) from error


def _check_replicable(layer: ModuleLayer, where: str) -> None:
    """Raise a UserError where replicas, which split batches, change what a layer computes."""
    for part in layer.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"--replicas: {where} has a {type(part).__name__}, whose statistics are those of "
                "the whole batch, and replicas split it: use torch.nn.GroupNorm, or leave "
                "--replicas out"
            )
    if getattr(layer.loss, "couples_images", False):
        raise UserError(
            f"--replicas: the loss {type(layer.loss).__name__} of {where} compares the images of "
            "a whole batch with each other, and replicas split it: leave --replicas out"
        )
    before = [buffer.clone() for buffer in layer.buffers()]
    half, whole, other = (_losses(layer, *case) for case in ((2, 0), (4, 0), (4, 1)))
    after = list(layer.buffers())
    if not torch.equal(whole, other):
        raise UserError(
            f"--replicas: {where} or its loss draws random numbers in training, which differ "
            "between replicas and one actor: use --dropout for dropout, or leave --replicas out"
        )
    kept = all(map(torch.equal, before, after))
    scale = whole.abs().max().item()
    if not (kept and torch.allclose(half, whole[:2], rtol=1e-3, atol=1e-4 * scale)):
        raise UserError(
            f"--replicas: what {where} or its loss computes of an image depends on the others of "
            "the batch, which replicas split: compute each image by itself, or leave --replicas "
            "out"
        )


def _losses(layer: ModuleLayer, images: int, seed: int) -> Tensor:
    """Return what training computes of the first images of four: loss and weighed features."""
    x = _images(layer, 4)[:images]
    with torch.no_grad(), seeded_generators(seed, layer.spec.index, 0, CPU):
        h, features = layer.outputs(x)
        _, losses = layer.losses(h, _labels(layer, images))
    assert losses is not None, "labels give losses"
    weights = torch.arange(1, 1 + math.prod(layer.spec.feature_shape)).sqrt()
    return torch.stack((losses, features.flatten(1) @ weights), dim=1)
