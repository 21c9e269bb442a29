"""What is to be trained and how, as plain data; the standard library only."""

from rayff.spec.architecture import IMAGE_SIZE, Architecture, LayerSpec
from rayff.spec.errors import RunError, TrainingDiverged, UserError, nearest
from rayff.spec.fit import check_cuts, check_method, check_replicas
from rayff.spec.kernels import METHODS, Kernels, format_kernels, parse_kernels
from rayff.spec.recipe import Recipe
from rayff.spec.run import RunSpec
from rayff.spec.text import is_plain, printable
from rayff.spec.zoo import ZOO, architecture

__all__ = [
    "IMAGE_SIZE",
    "METHODS",
    "ZOO",
    "Architecture",
    "Kernels",
    "LayerSpec",
    "Recipe",
    "RunError",
    "RunSpec",
    "TrainingDiverged",
    "UserError",
    "architecture",
    "check_cuts",
    "check_method",
    "check_replicas",
    "format_kernels",
    "is_plain",
    "nearest",
    "parse_kernels",
    "printable",
]
