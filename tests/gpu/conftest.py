"""The command line and the foreign micro models, as the end-to-end tests have them."""

from command_line import acmsao
from micro.shelf import lm, sdxl, shelf

__all__ = ["acmsao", "lm", "sdxl", "shelf"]
