"""Words that must never come out again, and where they did."""

from __future__ import annotations

from pathlib import Path

HOME = "home-of-canary"
TOKEN = "hf_CanaryCanaryCanaryCanary12345678"
KEY = "canary-0123456789-of-another-service"
CANARIES = (HOME, TOKEN, KEY)


def told(canaries: tuple[str, ...], *places: Path | str) -> list[str]:
    """Each canary with the text, or the file at or below a path, that has it."""
    texts: dict[str, bytes] = {}
    for place in places:
        if isinstance(place, str):
            texts[place] = place.encode()
            continue
        for file in [place, *place.rglob("*")]:
            if file.is_file():
                texts[file.name] = file.read_bytes() + file.name.encode()
    return [
        f"{word} in {name}"
        for name, text in texts.items()
        for word in canaries
        if word.encode() in text
    ]
