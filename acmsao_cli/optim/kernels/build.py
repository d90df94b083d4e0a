"""C compiled on demand by the system's compiler, once for each source, machine and compiler."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from acmsao_cli.errors import OptimizerError

# Infinities and NaN must survive, and only what is written as fused may be: not -ffast-math.
_FLAGS: Final = (
    "-std=c11",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fopenmp-simd",
    "-shared",
    "-fPIC",
)
_TUNINGS: Final = (("-march=native",), ())  # not every compiler knows its own machine
_TIMEOUT_SECONDS: Final = 120


@functools.cache
def load(source: Path, macros: tuple[tuple[str, str], ...]) -> ctypes.CDLL:
    """Return the library, compiled with these macros; raise OptimizerError where it cannot be."""
    command = [*_compiler(), *_FLAGS, *(f"-D{name}={value}" for name, value in macros)]
    identity = "\0".join([source.read_text(), *command, _version(command[0]), _processor()])
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    try:
        library = cache_folder() / f"{name}.so"
        if not library.exists():
            _compile([*command, str(source), "-lm"], library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError) as error:  # there may be no home either
        raise OptimizerError(
            f"the compiled CPU kernel cannot be kept or loaded: {error}",
            hint="set XDG_CACHE_HOME to a folder of yours that allows programs",
        ) from error


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "acmsao" / "kernels"


def _compile(command: list[str], library: Path) -> None:
    """Compile beside the target and move into place: another process may do the same."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built = Path(folder) / library.name
        for tuning in _TUNINGS:
            done = _run([*command, *tuning, "-o", str(built)])
            if done.returncode == 0:
                os.replace(built, library)
                return
        raise OptimizerError(
            f"{command[0]} could not compile the CPU kernel: {done.stderr.strip()[-800:]}",
            hint="point CC at a recent gcc or clang, or set kernels=false",
        )


def _compiler() -> list[str]:
    """The command of $CC, else the first compiler found."""
    chosen = shlex.split(os.environ.get("CC", ""))
    for name in [chosen[0]] if chosen else ["cc", "gcc", "clang"]:
        path = shutil.which(name)
        if path is not None:
            return [path, *chosen[1:]]
    raise OptimizerError(
        f"the CPU kernel needs a C compiler, and `{chosen[0]}` (from CC) is not there"
        if chosen
        else "the CPU kernel needs a C compiler, and none is installed",
        hint="install gcc or clang, or set kernels=false",
    )


@functools.cache
def _version(compiler: str) -> str:
    return _run([compiler, "--version"]).stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise OptimizerError(
            f"`{command[0]}` did not answer within {_TIMEOUT_SECONDS} s", hint="set kernels=false"
        ) from None


def _processor() -> str:
    """What -march=native sees: a home folder may be shared by different machines."""
    known = Path("/proc/cpuinfo")
    if not known.exists():
        return f"{platform.machine()} {platform.processor()}"
    first, _, _ = known.read_text().partition("\n\n")
    kinds = ("vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join(line for line in first.splitlines() if line.startswith(kinds))
