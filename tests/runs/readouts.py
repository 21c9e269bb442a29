"""Readouts of a network of four layers and four classes."""

import numpy as np

from rayff.learning.fusion import Fusion
from rayff.learning.readout import Readouts, Temperatures

FUSION = Fusion(
    weight=np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32),
    bias=np.array([0.25, -1.0, 0.0, 1e-9], np.float32),
)
READOUTS = Readouts(
    window=(1, 2), temperatures=Temperatures(window=(0.5, 1 / 3), last=1e-3), fusion=FUSION
)
