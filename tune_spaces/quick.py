"""Three learning rates on the embedded digits: about a minute on two cores."""

from ray import tune

title = "Learning rate of tinycnn on digits"
param_space = {
    "arch": "tinycnn",
    "task": "digits",
    "width": 20,
    "epochs": 2,
    "limit": 400,
    "lr": tune.grid_search([0.0006, 0.006, 0.06]),
}
