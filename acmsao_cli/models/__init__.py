"""Model families: loading, the loss, sampling, and the files other programs read."""

from __future__ import annotations

import logging
import sys


def hide_broken_bitsandbytes() -> None:
    """Make a bitsandbytes that does not load look absent.

    diffusers, transformers and peft import it wherever it is installed, and would fail with it on
    a machine whose driver it does not fit, though nothing here needs it unless a recipe asks.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes  # noqa: F401
    except Exception:  # a build that does not fit fails in many ways
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]


hide_broken_bitsandbytes()
