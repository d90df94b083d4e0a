"""`python -m acmsao_cli` and the console script."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and exit; an interrupt while it is imported is no fault either."""
    try:
        from acmsao_cli.cli.app import main as program
    except KeyboardInterrupt:
        sys.exit(130)
    program()


if __name__ == "__main__":
    main()
