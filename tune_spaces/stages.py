"""The same training cut into 1, 2 and 4 stages: the same accuracy at different speeds.

Trials run one at a time, so that their speeds can be compared. On fewer than four CPUs or GPUs the
stages of a trial share them: compare 1 and 2 stages there.
"""

from ray import tune

title = "tinycnn in 1, 2 and 4 stages"
param_space = {
    "arch": "tinycnn",
    "task": "digits",
    "epochs": 2,
    "kernels": "conv/conv",  # the same bits in every trial
    "stages": tune.grid_search([1, 2, 4]),
}
max_concurrent = 1
