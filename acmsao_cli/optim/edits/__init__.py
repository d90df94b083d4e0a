"""Changes to the gradient before the rule, or to the direction after it; files register here."""

import sys

from acmsao_cli.optim.registry import import_modules

import_modules(sys.modules[__name__])
