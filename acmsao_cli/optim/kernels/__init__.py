"""Twins of whole pipelines in C and Triton, found by what a pipeline is.

A kernel is accepted when it equals the pipeline it stands for: the same random bits, the same
arithmetic, so that only the order of sums (and a contracted product) may show.
"""

from acmsao_cli.optim.kernels.composed import Composed
from acmsao_cli.optim.kernels.find import Kernel, find, require

__all__ = ["Composed", "Kernel", "find", "require"]
