"""What every benchmark writes beside its figures, and where."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from acmsao_cli.bench import provenance as bench
from acmsao_cli.bench.provenance import table

__all__ = ["RESULTS", "provenance", "table", "write"]

RESULTS = Path(__file__).parent / "results"


def provenance(what: str, *libraries: str) -> dict[str, Any]:
    """The head of a result file; `libraries` are told beside our own."""
    program = f"python benchmarks/{Path(sys.argv[0]).name}"
    return bench.provenance(what, program, *libraries)


def write(stem: Path, result: dict[str, Any], text: str) -> None:
    """Write `stem`.json and `stem`.md."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"wrote {stem.with_suffix('.json')} and {stem.with_suffix('.md')}")
