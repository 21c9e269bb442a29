"""How a layer learns; torch only.

Shape legend: B batch, K channels, C classes, H x W pixels, L layers.
"""

import os

# Tensors of many megabytes come and go in each step: on huge pages they cost a third as much. Read
# by torch when it first allocates.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
