"""What a control group or a limit takes from the machine's memory is not there for the process."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from acmsao_cli.host_memory import Room, host_memory, machine

MIB = 2**20
V1_UNLIMITED = 9223372036854771712


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """Folders as /sys/fs/cgroup and /proc/self are."""
    for name in ("cgroup", "proc"):
        (tmp_path / name).mkdir()
    return tmp_path / "cgroup", tmp_path / "proc"


def write(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")


def v2(most: object, used: int, files: int = 0) -> dict[str, object]:
    stat = f"anon {used - files}\ninactive_file {files}"
    return {"memory.max": most, "memory.current": used, "memory.stat": stat}


def v1(most: int, used: int, files: int = 0) -> dict[str, object]:
    stat = f"cache {files}\ninactive_file 1\ntotal_inactive_file {files}"
    return {"memory.limit_in_bytes": most, "memory.usage_in_bytes": used, "memory.stat": stat}


def test_where_nothing_bounds_it_is_the_machines(place: tuple[Path, Path]) -> None:
    cgroups, proc = place
    write(proc, {"cgroup": "0::/user.slice"})
    write(cgroups / "user.slice", v2("max", 3 * MIB))
    found, whole = host_memory(cgroups, proc), machine()
    assert found.total == whole.total
    assert abs(found.free - whole.free) < whole.total / 2


def test_a_group_leaves_its_bound_without_what_is_used_and_not_given_up(
    place: tuple[Path, Path],
) -> None:
    cgroups, proc = place
    write(proc, {"cgroup": "0::/job"})
    write(cgroups / "job", v2(10 * MIB, 8 * MIB, files=5 * MIB))
    assert host_memory(cgroups, proc) == Room(7 * MIB, 10 * MIB)


def test_a_group_above_may_leave_less(place: tuple[Path, Path]) -> None:
    cgroups, proc = place
    write(proc, {"cgroup": "0::/slice/job"})
    write(cgroups / "slice" / "job", v2(10 * MIB, 1 * MIB))
    write(cgroups / "slice", v2(12 * MIB, 9 * MIB))
    assert host_memory(cgroups, proc) == Room(3 * MIB, 10 * MIB)


def test_a_container_that_does_not_see_its_own_name_has_its_group_at_the_root(
    place: tuple[Path, Path],
) -> None:
    cgroups, proc = place
    write(proc, {"cgroup": "4:cpu,memory:/docker/abc\n0::/"})
    write(cgroups / "memory", v1(6 * MIB, 5 * MIB, files=1 * MIB))
    assert host_memory(cgroups, proc) == Room(2 * MIB, 6 * MIB)


def test_the_first_version_says_unbounded_by_a_number(place: tuple[Path, Path]) -> None:
    cgroups, proc = place
    write(proc, {"cgroup": "4:memory:/job"})
    write(cgroups / "memory" / "job", v1(V1_UNLIMITED, 5 * MIB))
    assert host_memory(cgroups, proc).total == machine().total


def test_one_that_is_over_its_bound_leaves_nothing(place: tuple[Path, Path]) -> None:
    cgroups, proc = place
    write(proc, {"cgroup": "0::/"})
    write(cgroups, v2(4 * MIB, 5 * MIB))
    assert host_memory(cgroups, proc).free == 0


def test_a_limit_on_addresses_counts(
    place: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cgroups, proc = place
    write(proc, {"statm": f"{3 * MIB // resource.getpagesize()} 1 1 1 0 1 0"})
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8 * MIB, 9 * MIB))
    assert host_memory(cgroups, proc) == Room(5 * MIB, 8 * MIB)


def test_it_is_known_without_psutil() -> None:
    code = """
import sys
sys.modules["psutil"] = None
from acmsao_cli.host_memory import host_memory
found = host_memory()
assert 0 < found.free <= found.total
"""
    subprocess.run([sys.executable, "-c", code], check=True)
