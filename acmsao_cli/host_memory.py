"""How much of the host's memory this process may take.

That is less than the machine has free where a control group bounds it, as in a container, or a
limit of its own (`ulimit -v`). Paths are parameters so that others than this system's can be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

CGROUPS: Final = Path("/sys/fs/cgroup")
PROC: Final = Path("/proc/self")


class Room(NamedTuple):
    """Bytes that may still be taken, and all that there are."""

    free: int
    total: int


def host_memory(cgroups: Path = CGROUPS, proc: Path = PROC) -> Room:
    """The least of what the machine, every control group above this process and its limit leave."""
    rooms = [machine(), *groups(cgroups, proc), *own_limit(proc)]
    return Room(min(one.free for one in rooms), min(one.total for one in rooms))


def machine() -> Room:
    """What the machine has: free is also what the system would give up for it, where it says so."""
    try:
        import psutil
    except ModuleNotFoundError:  # optimizers in loops of others need torch alone
        page = os.sysconf("SC_PAGE_SIZE")
        return Room(page * os.sysconf("SC_AVPHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES"))
    memory = psutil.virtual_memory()
    return Room(int(memory.available), int(memory.total))


def groups(cgroups: Path, proc: Path) -> Iterator[Room]:
    """What bounded control groups leave, of both versions: this process's and those above it.

    A container may not see its own name: then its group is what lies at the root.
    """
    for line in _text(proc / "cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            files, root = _VERSION_2, cgroups
        elif "memory" in controllers.split(","):
            files, root = _VERSION_1, cgroups / "memory"
        else:
            continue
        inner = PurePosixPath(name.lstrip("/"))
        for group in (inner, *inner.parents):
            yield from _group(root / group, *files)


# Where a version has the limit, what is used, and the part of it that is a file's and rarely read.
_VERSION_2: Final = ("memory.max", "memory.current", "inactive_file")
_VERSION_1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def _group(folder: Path, limit: str, used: str, given_up: str) -> Iterator[Room]:
    most, now = _text(folder / limit).strip(), _text(folder / used).strip()
    if not (most.isdigit() and now.isdigit()):  # "max", or there is no such group
        return
    counts = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
    taken = int(now) - int(counts.get(given_up, 0))
    yield Room(max(0, int(most) - taken), int(most))


def own_limit(proc: Path) -> Iterator[Room]:
    """What the bound on this process's addresses leaves, where it has one."""
    try:
        import resource
    except ModuleNotFoundError:  # not of this system
        return
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = _text(proc / "statm").split()
    if most != resource.RLIM_INFINITY and pages:
        yield Room(max(0, most - int(pages[0]) * resource.getpagesize()), most)


def _text(file: Path) -> str:
    """What a file of the system says; nothing where it has none."""
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
