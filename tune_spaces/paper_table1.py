"""Table 1 of DeeperForward (Sun et al., ICLR 2025): three networks on three tasks.

The defaults are the paper's full recipe of 150 epochs, which takes GPUs. The published figures are
means over five seeds (--seeds 5). A small version:

    rayff tune paper_table1 --data-dir DIR --epochs 3 --limit 2000
"""

from ray import tune

title = "DeeperForward, table 1"
param_space = {
    "arch": tune.grid_search(["resnet", "vgg", "tinycnn"]),
    "task": tune.grid_search(["mnist", "fmnist", "cifar10"]),
}
published = {
    ("resnet", "mnist"): 99.63,
    ("resnet", "fmnist"): 93.13,
    ("resnet", "cifar10"): 86.22,
    ("vgg", "mnist"): 99.65,
    ("vgg", "fmnist"): 92.44,
    ("vgg", "cifar10"): 81.76,
    ("tinycnn", "mnist"): 99.50,
    ("tinycnn", "fmnist"): 91.83,
    ("tinycnn", "cifar10"): 79.49,
}
