"""Augmentations: each alone, the usual ones together, and their strengths.

The digits look different in a mirror, and tinycnn learns them in few epochs; where augmentation
helps is CIFAR-10:

    rayff tune augment --set task=cifar10 --data-dir DIR --epochs 30 --seeds 3
"""

from ray import tune

title = "Augmentations of the training images"
param_space = {
    "arch": "tinycnn",
    "task": "digits",
    "epochs": 4,
    "augment": tune.grid_search(
        [
            "none",
            "flip",
            "crop:2",
            "crop:4",
            "translate:2",
            "translate:4",
            "cutout:8",
            "crop:4,flip",
            "translate:2,flip",
            "crop:4,flip,cutout:8",
            "crop:4,flip,cutout:16",
        ]
    ),
}
