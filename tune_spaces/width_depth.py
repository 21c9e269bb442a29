"""Networks of several widths and depths on one task.

The width must be a multiple of the number of classes; the paper's resnet has 100.

    rayff tune width_depth --set task=cifar10 --data-dir DIR
"""

from ray import tune

title = "Width and depth of the resnet family"
param_space = {
    "arch": tune.grid_search(["tinycnn", "resnet", "resnet34"]),
    "width": tune.grid_search([20, 50, 100]),
    "task": "digits",
    "epochs": 4,
}
