"""Learning rate and end of its cosine: random draws, of which ASHA stops the worse ones early.

rayff tune learning_rate --set task=mnist --data-dir DIR --epochs 10
"""

from ray import tune

title = "Learning rate and cosine floor of tinycnn"
param_space = {
    "arch": "tinycnn",
    "task": "digits",
    "epochs": 10,
    "lr": tune.loguniform(1e-2, 3e-1),
    "lr_min": tune.loguniform(1e-4, 1e-2),
}
num_samples = 16
scheduler = "asha"
