"""The report file of an unexpected fault: what a maintainer needs, and nothing private."""

from __future__ import annotations

import os
import platform
import shlex
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from acmsao_cli.privacy import private
from acmsao_cli.versions import versions


def write_report(error: BaseException, argv: Sequence[str]) -> Path | None:
    """Write the traceback here, or among temporary files; return None where neither can be done.

    Neither the environment nor local variables are in it, nor tokens and the home folder's path:
    they are what people keep to themselves.
    """
    text = "\n".join(
        [
            *(f"{name} {version}" for name, version in versions().items()),
            platform.platform(),
            f"command: acmsao {shlex.join(argv)}",
            "",
            *traceback.format_exception(error),
        ]
    )
    name = f"acmsao-fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in (Path.cwd, lambda: Path(tempfile.gettempdir())):
        try:
            path = folder() / name
            with open(path, "x", encoding="utf-8", errors="backslashreplace") as file:
                file.write(private(text))
            return path
        except OSError:
            continue
    return None
