"""How a layer learns; torch only.

Shape legend: B batch, K channels, C classes, H x W pixels, L layers.
"""
