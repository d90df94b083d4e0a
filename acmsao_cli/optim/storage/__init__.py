"""Where state lives: codecs, and which slot gets which. A new file here registers itself."""

import sys

from acmsao_cli.optim.registry import import_modules

import_modules(sys.modules[__name__])
