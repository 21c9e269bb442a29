"""How layers learn: the layer, the chain, local losses, steps, optimizers, readouts.

Shape legend: B batch, K channels, C classes, H x W pixels, L layers, P cells of a pooled map.
"""
