"""Networks of several widths and depths on one task.

Give it a task with --set task=cifar10 --data-dir DIR; digits shows the way. Widths are multiples
of ten, the classes, and 100 is the paper's for the resnets.
"""

from ray import tune

title = "Width and depth of the resnet family"
param_space = {
    "arch": tune.grid_search(["tinycnn", "resnet", "resnet34"]),
    "width": tune.grid_search([20, 50, 100]),
    "task": "digits",
    "epochs": 4,
}
