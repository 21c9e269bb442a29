"""Base class of trained networks: several classifiers, and the readout that joins them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter

import torch
from torch import Tensor, nn

from rayff.config.errors import UserError, nearest
from rayff.config.train_config import Resize
from rayff.learning.chain import Activations, normalise
from rayff.learning.readout import READOUTS, ReadoutName, Readouts
from rayff.models.architecture import Architecture, Spec


class Classifier(nn.Module, ABC):
    """A trained network that takes uint8 images; it needs neither Ray nor its training data.

    Args:
        architecture: all layers.
        window: first and last classifier whose logits are summed.
        class_names: one a class.

    Attributes:
        resize: what becomes of images that are not square.
        calibrated: whether temperatures were fitted; probabilities use 1 where not.
        temperatures: of the window's sum up to each of its classifiers.
        last_temperature: of the last classifier alone.
        fusion: the linear classifier of all logits; None where it was not fitted.
        dtype: number format of the activations.
    """

    dtype: torch.dtype
    fusion: nn.Linear | None

    def __init__(
        self, architecture: Architecture, window: tuple[int, int], class_names: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.resize: Resize = "crop"
        self.class_names = class_names
        self.load_readouts(Readouts(window=window))

    def load_readouts(self, readouts: Readouts) -> None:
        """Take over window, temperatures and fusion; the readout is the window again."""
        self._readout: ReadoutName = "window"
        first, last = self.window = readouts.window
        found = readouts.temperatures
        self.calibrated = found is not None
        self.temperatures = (1.0,) * (last - first + 1) if found is None else found.window
        self.last_temperature = 1.0 if found is None else found.last
        self.fusion = None
        if readouts.fusion is not None:
            classes, inputs = readouts.fusion.weight.shape
            self.fusion = nn.Linear(inputs, classes).requires_grad_(False)
            self.fusion.weight.copy_(torch.tensor(readouts.fusion.weight))
            self.fusion.bias.copy_(torch.tensor(readouts.fusion.bias))

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The layers, with their parameters; their forward hooks fire."""

    @abstractmethod
    def compute(self, layer: int, activations: Activations) -> tuple[Activations, Tensor | None]:
        """Return what leaves a layer, and its logits, (B, C); None where it gives none."""

    @abstractmethod
    def layers_computed(self, classifier: int) -> int:
        """Return how many layers must be computed for a classifier."""

    @property
    def readout(self) -> ReadoutName:
        """How the logits become one classifier: window (the default), last or fusion.

        Raises:
            UserError: when set to a name that is unknown, or to a fusion that was not fitted.
        """
        return self._readout

    @readout.setter
    def readout(self, name: ReadoutName) -> None:
        if name not in READOUTS:
            raise UserError(
                f"unknown readout {name!r}{nearest(str(name), READOUTS)}; known are "
                f"{', '.join(READOUTS)}"
            )
        if name not in self.readouts:
            raise UserError(
                "this model has no readout fusion: it is fitted at the end of a run, for networks "
                "of several classifiers and not too many classes; use window or last"
            )
        self._readout = name

    @property
    def readouts(self) -> tuple[ReadoutName, ...]:
        """The readouts that the model has."""
        return READOUTS if self.fusion is not None else ("window", "last")

    @property
    def temperature(self) -> float:
        """What the readout's logits are divided by before the softmax."""
        return self.temperature_of(self.readout)

    def temperature_of(self, readout: ReadoutName) -> float:
        """Return the temperature of a readout; fusion's is 1, as it is fitted by likelihood."""
        return {"window": self.temperatures[-1], "last": self.last_temperature, "fusion": 1.0}[
            readout
        ]

    @property
    def learned_layers(self) -> list[tuple[Spec, nn.Module]]:
        """Each layer with the module that holds its parameters."""
        return list(zip(self.architecture.layers, self.layers, strict=True))

    @property
    def depth(self) -> int:
        """Layers that must be computed to classify with the readout."""
        return self.layers_computed(self._last_classifier)

    @property
    def _last_classifier(self) -> int:
        return self.window[1] if self.readout == "window" else self.num_classifiers - 1

    @property
    def num_classifiers(self) -> int:
        """Number of layers that give logits."""
        return sum(1 for index in range(len(self.architecture)) if self._has_classifier(index))

    def _has_classifier(self, layer: int) -> bool:
        return True

    @property
    def first_weight(self) -> Tensor | None:
        """The filters of the first layer, (K, channels, height, width); None without any."""
        _, first = self.learned_layers[0]
        channels = self.architecture.image_channels
        filters = (p for p in first.parameters() if p.dim() == 4 and p.shape[1] == channels)
        return next(filters, None)

    @torch.no_grad()
    def logits(self, images: Tensor, num_classifiers: int | None = None) -> Tensor:
        """Return the logits of each layer, (L, B, C), from the first one on.

        They are what the readouts add up: goodness, or log-probabilities where a local loss has
        other logits.

        Args:
            images: uint8, (B, K, S, S).
            num_classifiers: L, how many; no deeper layer is computed. None for all.

        Raises:
            UserError: the images are not uint8, or of another shape than the network's.
        """
        each = (logits for _, logits in self._iter_layers(images) if logits is not None)
        return torch.stack(list(islice(each, num_classifiers)))

    @torch.no_grad()
    def features(self, images: Tensor, layer: int) -> Tensor:
        """Return what a layer hands on to the next one, in float32.

        Of a convolution that is its normalised activation, (B, K, H, W), joined by the shortcut
        where its block ends; of a module also (B, F) or (B, T, D). No deeper layer is computed.

        Args:
            images: uint8, (B, K, S, S).
            layer: from 0.

        Raises:
            UserError: there is no such layer, the images are not uint8, or of another shape than
                the network's.
        """
        if not 0 <= layer < len(self.architecture):
            raise UserError(
                f"this model has no layer {layer}: its layers are 0 to "
                f"{len(self.architecture) - 1}"
            )
        features, _ = next(islice(self._iter_layers(images), layer, None))
        return features.float()

    def _iter_layers(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the features and the logits of one layer after the other."""
        self._check_images(images)
        activations = Activations(features=normalise(images, self.dtype))
        for layer in range(len(self.architecture)):
            activations, logits = self.compute(layer, activations)
            yield activations.features, logits

    def _check_images(self, images: Tensor) -> None:
        shape = self.architecture.image_shape
        if images.dtype == torch.uint8 and images.shape[1:] == shape:
            return
        raise UserError(
            f"the model takes uint8 images of shape (B, {', '.join(map(str, shape))}) with values "
            f"from 0 to 255, not {images.dtype} of {tuple(images.shape)}: resize them, and turn "
            "values from 0 to 1 into (255 * images).round().to(torch.uint8)"
        )

    @torch.no_grad()
    def read_out(self, logits: Tensor, readout: ReadoutName) -> Tensor:
        """Return a readout's logits, (B, C), of those of its classifiers, (L, B, C)."""
        if readout == "fusion":
            assert self.fusion is not None, "the readout was checked when it was set"
            fused: Tensor = self.fusion(logits.transpose(0, 1).flatten(1))
            return fused
        first, last = self.window
        return logits[-1] if readout == "last" else logits[first : last + 1].sum(dim=0)

    def forward(self, images: Tensor) -> Tensor:
        """Return the readout's logits, (B, C), of uint8 images (B, K, S, S); see `logits`."""
        return self.read_out(self.logits(images, self._last_classifier + 1), self.readout)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class, (B, C), of uint8 images (B, K, H, W).

        They are the softmax of the readout's logits over its temperature.
        """
        logits: Tensor = self(images)
        return (logits / self.temperature).softmax(dim=1)

    @torch.no_grad()
    def early_exit(self, images: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """Classify each image with as few layers of the window as reach a probability.

        A layer is computed for those images alone that no layer before was sure of.

        Args:
            images: uint8, (B, K, S, S).
            threshold: probability at which no further layer is computed.

        Returns:
            the probabilities, (B, C), and the number of layers computed for each image, (B,).

        Raises:
            UserError: the readout is not the window, whose sum alone grows layer by layer; or
                images of another type or shape than the network's.
        """
        self._check_images(images)
        if self.readout != "window":
            raise UserError(f"early exit needs the readout window, not {self.readout}")
        first, _ = self.window
        rows = torch.arange(len(images), device=images.device)
        layers = torch.zeros_like(rows)
        probabilities = torch.zeros(len(rows), self.architecture.num_classes).to(images.device)
        total = torch.zeros_like(probabilities)
        activations = Activations(features=normalise(images, self.dtype))
        classifier = -1
        for layer in range(self.depth):
            activations, logits = self.compute(layer, activations)
            classifier += logits is not None
            if logits is None or classifier < first:
                continue
            total = total + logits
            found = (total / self.temperatures[classifier - first]).softmax(dim=1)
            probabilities[rows], layers[rows] = found.float(), layer + 1
            unsure = ~(found.amax(dim=1) >= threshold)
            if not unsure.any():
                break
            if not unsure.all():
                rows, total = rows[unsure], total[unsure]
                activations = activations.map(itemgetter(unsure))
        return probabilities, layers
