"""Trainings of models of true size, each under a cap of the device's memory: planned and measured.

python benchmarks/gpu/tiers.py [--only NAME ...] [--missing] [--steps 6] [--budget-s 520]
python benchmarks/gpu/tiers.py --list | --plan
python benchmarks/gpu/tiers.py --tiny --device cpu [--here]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
# The shapes of published models are the tests', other libraries' optimizers the benchmarks'.
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from acmsao_cli.cli.quiet import quiet_libraries  # noqa: E402

quiet_libraries()  # the allocator is set up as in a run, before torch is

import torch  # noqa: E402
from cases import BY_NAME, CARD, CASES, Case, config_of  # noqa: E402
from measuring import FAILED, MISSING, Asked, Row, measure, planned  # noqa: E402
from processes import IN_SEQUENCE, alone, beside, with_ratio  # noqa: E402
from recording import RESULTS  # noqa: E402
from weights import write_model  # noqa: E402

from acmsao_cli.bench.provenance import provenance  # noqa: E402
from acmsao_cli.memory.cards import GIB  # noqa: E402
from acmsao_cli.memory.choose import decide, words_of  # noqa: E402

WHAT: Final = "planned and measured peaks and times of training steps under caps of GPU memory"
PROGRAM: Final = "python benchmarks/gpu/tiers.py"
ANY_STEPS: Final = 1  # a plan is the same for any number


def run(
    cases: Sequence[Case], asked: Asked, options: argparse.Namespace
) -> Iterator[dict[str, Row]]:
    """The rows of each case, as they come; none is begun once the budget is spent."""
    began, done = time.monotonic(), set[str]()
    for case in cases:
        if case.name in done or any(one.beside == case.name for one in cases):
            continue  # it comes with the case that is measured beside it
        if time.monotonic() - began > options.budget_s:
            left = [one.name for one in cases if one.name not in done]
            print(f"{options.budget_s:.0f} s are over; not begun: {', '.join(left)}")
            return
        rows = rows_of(case, asked, options)
        done |= rows.keys()
        yield rows


def rows_of(case: Case, asked: Asked, options: argparse.Namespace) -> dict[str, Row]:
    """The case's row, and that of the one beside it."""
    reference = BY_NAME[case.beside] if case.beside else None
    if options.here:
        both = [reference, case] if reference else [case]
        rows = {one.name: measure(one, asked, lambda: None) for one in both}
        return with_ratio(rows, case, reference, IN_SEQUENCE) if reference else rows
    if reference:
        return beside(case, reference, asked, options.limit_s)
    return {case.name: alone(case, asked, options.limit_s)}


def kept(path: Path | None) -> dict[str, Row]:
    """The rows of former calls."""
    if path is None or not path.is_file():
        return {}
    found: dict[str, Row] = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return found


def write(path: Path | None, rows: dict[str, Row]) -> None:
    """All rows in the order of the cases."""
    if path is None:
        return
    ordered = {name: rows[name] for name in BY_NAME if name in rows}
    found = provenance(WHAT, PROGRAM, "adv_optm", "torchao") | {"cases": ordered}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def line(name: str, row: Row) -> str:
    """A row for the terminal."""
    if row["status"] == MISSING:
        return f"{name:18} {MISSING}: {row['message']}"
    words = [f"{name:18} {row['status']:7}"]
    told_before, found = row.get("planned"), row.get("measured")
    if told_before:
        words.append(f"planned {gib(told_before['allocated_bytes'])}")
    if found:
        words.append(f"measured {gib(found['allocated_bytes'])}")
        words.append(f"reserved {gib(found['reserved_bytes'])}")
    if row.get("cap_gib"):
        words.append(f"cap {row['cap_gib']:g} GiB")
    if row.get("seconds_per_step"):
        words.append(f"{row['seconds_per_step']:.3f} s a step")
    if ratio := row.get("ratio"):
        words.append(f"{ratio['of step times']} of {ratio['to']} (aim {ratio['aim']})")
        words.append(ratio["measured"])
    return ", ".join(words + ([row["message"]] if "message" in row else []))


def gib(size: int | None) -> str:
    """Bytes for the terminal."""
    return "unknown" if size is None else f"{size / GIB:.3f} GiB"


def show_plans(cases: Sequence[Case]) -> None:
    """What the planner decides for the true sizes, on any machine."""
    with TemporaryDirectory() as base:
        for case in cases:
            if case.peer:
                continue
            folder = Path(base) / case.model
            if not folder.exists():
                write_model(case.model, folder, tiny=False)
            row = planned(decide(config_of(case, folder, "auto", ANY_STEPS, tiny=False), CARD))
            print(line_of_plan(case, row), flush=True)


def line_of_plan(case: Case, row: Row) -> str:
    """A plan for the terminal."""
    sizes = {name: gib(row["planned"][f"{name}_bytes"]) for name in ("allocated", "reserved")}
    return (
        f"{case.name:18} cap {case.cap_gib:g} GiB: {sizes['allocated']} allocated, "
        f"{sizes['reserved']} reserved, {gib(row['planned']['needs_bytes'])} with the context; "
        f"{words_of(row['decided'])}"
    )


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases that were asked for; ends the program with one line where there is no such."""
    for name in options.only or ():
        if name not in BY_NAME:
            sys.exit(f"there is no case {name}; cases: {', '.join(BY_NAME)}")
    there = kept(options.json) if options.missing else {}
    wanted = options.only or list(BY_NAME)
    return [case for case in CASES if case.name in wanted and case.name not in there]


def require_device(options: argparse.Namespace) -> None:
    """End the program with one line where the cases cannot run."""
    if options.device == "cpu":
        if not options.tiny:
            sys.exit("models of true size are for a GPU; on a CPU add --tiny")
    elif not torch.cuda.is_available():
        sys.exit(
            f"torch sees no CUDA device for --device {options.device}; or: --device cpu --tiny"
        )


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these cases")
    parser.add_argument("--missing", action="store_true", help="cases that have no result yet")
    parser.add_argument("--list", action="store_true", help="name the cases, and end")
    parser.add_argument("--plan", action="store_true", help="plan the cases for a card, and end")
    parser.add_argument("--device", default="cuda:0", help="or cpu, with --tiny")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--tiny", action="store_true", help="micro models, no caps")
    parser.add_argument("--here", action="store_true", help="all cases in this process")
    parser.add_argument("--budget-s", type=float, default=520, help="no case begins after these")
    parser.add_argument("--limit-s", type=float, default=540, help="longest silence of a case")
    parser.add_argument("--json", type=Path, help="default: in results/, unless --tiny")
    options = parser.parse_args(arguments)
    if options.json is None and not options.tiny:
        options.json = RESULTS / "gpu-tiers.json"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 if a case failed."""
    options = parsed(arguments)
    cases = chosen(options)
    if options.list:
        for case in cases:
            cap = f"{case.cap_gib:g} GiB" if case.cap_gib else "no cap"
            print(f"{case.name:18} {case.model:14} {cap:9} {' '.join(case.settings)}")
        return 0
    if options.plan:
        show_plans(cases)
        return 0
    require_device(options)
    rows, asked = kept(options.json), Asked(options.device, options.steps, options.tiny)
    fresh: dict[str, Any] = {}
    for found in run(cases, asked, options):
        fresh |= found
        write(options.json, rows | fresh)
        for name, row in found.items():
            print(line(name, row), flush=True)
    return int(any(row["status"] == FAILED for row in fresh.values()))


if __name__ == "__main__":
    sys.exit(main())
