"""The registries whose implementations need torch: names are known without importing it."""

from __future__ import annotations

from typing import Any

from rayff.config.registry import Registry

LOSSES: Registry[Any] = Registry("local loss", "--loss")
"""Subclasses of torch.nn.Module; see rayff.learning.losses."""
LOSSES.add("goodness", "rayff.learning.losses.goodness:Goodness")
LOSSES.add("squared_goodness", "rayff.learning.losses.goodness:SquaredGoodness")
LOSSES.add("channel_matrix", "rayff.learning.losses.channel_matrix:ChannelMatrix")
LOSSES.add("linear", "rayff.learning.losses.linear:Linear")
LOSSES.add("linear_similarity", "rayff.learning.losses.linear:LinearSimilarity")
LOSSES.add("predsim", "rayff.learning.losses.predsim:Predsim")

OPTIMIZERS: Registry[Any] = Registry("optimizer", "--optimizer")
"""Subclasses of LayerOptimizer, or of torch.optim.Optimizer; see rayff.learning.optimizers."""
OPTIMIZERS.add("adamw", "rayff.learning.optimizers:FusedAdamW")
OPTIMIZERS.add("adam", "rayff.learning.optimizers:FusedAdam")
OPTIMIZERS.add("sgd", "rayff.learning.optimizers:FusedSGD")
OPTIMIZERS.add("muon", "rayff.learning.muon:Muon")

AUGMENTATIONS: Registry[Any] = Registry("augmentation", "--augment")
"""Subclasses of ImageAugmentation, or callables on a uint8 batch and a generator; see
rayff.data.augmentation."""
AUGMENTATIONS.add("crop", "rayff.data.transforms:Crop")
AUGMENTATIONS.add("flip", "rayff.data.transforms:Flip")
AUGMENTATIONS.add("cutout", "rayff.data.transforms:Cutout")
AUGMENTATIONS.add("translate", "rayff.data.transforms:Translate")
