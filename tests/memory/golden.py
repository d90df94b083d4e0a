"""What each preset decides for published models, as a value that a file can hold.

python tests/memory/golden.py [MODEL ...] writes the entries of these models, or of all, anew;
with --missing those that are not there.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from micro.shapes import LANGUAGE_MODELS, language_model, sdxl

from acmsao_cli.config.layers import Request, resolve
from acmsao_cli.memory.cards import CARDS, GIB, card_named
from acmsao_cli.memory.choose import decide

FILE: Final = Path(__file__).parent / "golden.json"
SDXL: Final = "sdxl"
PRESETS: Final = tuple(CARDS)
# The tiers that the presets began as: a batch for each size of card.
TIERS: Final = {"16gb": 1, "24gb": 4, "80gb": 16}
TEXT_SETTINGS: Final = (
    *("data.source=builtin:pirate", "data.max_length=2048"),
    *("training.batch_size=1", "training.accumulation=1"),
)
PICTURE_SETTINGS: Final = (
    *("data.source=builtin:zoblins", "training.batch_size=1", "training.accumulation=1"),
)
ENCODERS: Final = ("method.text_encoders=true",)
METHODS: Final[dict[str, dict[str, tuple[str, tuple[str, ...]]]]] = {
    "text": {
        "lora": ("llm-lora", TEXT_SETTINGS),
        "qlora": ("llm-lora", (*TEXT_SETTINGS, "model.quantize=nf4")),
        "full": ("llm-full", TEXT_SETTINGS),
    },
    "pictures": {
        "lora": ("sdxl-lora", PICTURE_SETTINGS),
        "lora+te": ("sdxl-lora", (*PICTURE_SETTINGS, *ENCODERS)),
        "full": ("sdxl-full", PICTURE_SETTINGS),
        "full+te": ("sdxl-full", (*PICTURE_SETTINGS, *ENCODERS)),
    },
    # Each with its tier's batch.
    "tiers": {
        "tier lora": ("sdxl-lora", PICTURE_SETTINGS),
        "tier full": ("sdxl-full", PICTURE_SETTINGS),
        "tier full acmsao": ("sdxl-full", (*PICTURE_SETTINGS, "optimizer.name=acmsao")),
        "tier full prodigy": (
            "sdxl-full",
            (*PICTURE_SETTINGS, "optimizer.name=prodigy", "optimizer.lr=1"),
        ),
    },
}


@dataclass(frozen=True)
class Case:
    """A training of a model under a preset, on the preset's card."""

    model: str
    method: str
    preset: str

    def __str__(self) -> str:
        return f"{self.model} {self.method} {self.preset}"

    def decided(self, folder: Path) -> dict[str, Any]:
        """What is decided for the model in `folder`."""
        recipe, settings = methods_of(self.model)[self.method]
        if self.method in METHODS["tiers"]:
            settings = (*settings, f"training.batch_size={TIERS[self.preset]}")
        request = Request(recipe, self.preset, (f"model.source={folder}", *settings))
        card = card_named(self.preset)
        found = decide(resolve(request), card)
        made = found.plan
        return {
            "decided": dict(found.settings),
            "why": found.why,
            "fits": made.needed_bytes <= card.usable_bytes,
            "needs_gib": round(made.needed_bytes / GIB, 2),
            "host_gib": round(made.host["page-locked"] / GIB, 2),
        }


def methods_of(model: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Recipes and settings by method."""
    return METHODS["pictures"] | METHODS["tiers"] if model == SDXL else METHODS["text"]


def cases(models: tuple[str, ...] = (SDXL, *LANGUAGE_MODELS)) -> Iterator[Case]:
    """Every case of these models."""
    for model in models:
        for method in methods_of(model):
            for preset in TIERS if method in METHODS["tiers"] else PRESETS:
                yield Case(model, method, preset)


def write_model(model: str, folder: Path) -> Path:
    """The model's folder, without weights."""
    return sdxl(folder) if model == SDXL else language_model(model, folder)


def golden() -> dict[str, dict[str, Any]]:
    """What the file holds, by case."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Compute and write."""
    named = [one for one in sys.argv[1:] if one != "--missing"]
    models = tuple(named) or (SDXL, *LANGUAGE_MODELS)
    known = golden() if FILE.is_file() else {}
    with tempfile.TemporaryDirectory() as base:
        for model in models:
            folder = write_model(model, Path(base) / model)
            for case in cases((model,)):
                if "--missing" in sys.argv and str(case) in known:
                    continue
                known[str(case)] = case.decided(folder)
                print(case, known[str(case)], flush=True)
            ordered = {str(one): known[str(one)] for one in cases() if str(one) in known}
            FILE.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
