"""The same training cut into 1, 2 and 4 stages: the same accuracy, at other speeds.

One trial at a time, so that none takes the time of another. With fewer than four CPUs or GPUs the
stages share them; compare 1 and 2 there.
"""

from ray import tune

title = "tinycnn in 1, 2 and 4 stages"
param_space = {
    "arch": "tinycnn",
    "task": "digits",
    "epochs": 2,
    "kernels": "conv/conv",  # the same arithmetic in every trial: the same bits
    "stages": tune.grid_search([1, 2, 4]),
}
max_concurrent = 1
