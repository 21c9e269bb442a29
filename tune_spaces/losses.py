"""The local losses side by side, with and without augmentation; three seeds by --seeds 3.

The defaults are small. The losses on CIFAR-10, each with the recipe of its own:

    rayff tune losses --set task=cifar10 --data-dir DIR --seeds 3 --epochs 10 --limit 50000
"""

from ray import tune

title = "Local losses of tinycnn"
param_space = {
    "arch": "tinycnn",
    "task": "digits",
    "epochs": 2,
    "limit": 400,
    "loss": tune.grid_search(
        ["goodness", "squared_goodness", "channel_matrix", "linear", "linear_similarity"]
    ),
    "augment": tune.grid_search(["none", "crop,flip"]),
}
