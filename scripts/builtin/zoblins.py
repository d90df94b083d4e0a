"""The quickstart's new concept: zoblins, round, with antennae, two big eyes and a smile."""

from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw
from world import PALETTE, Pixels

SIDE = 64
SCALE = 8
COUNT = 20
WHITE, BLACK = (250, 250, 250), (15, 15, 18)


def _disc(
    draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: tuple[int, int, int]
) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)


def zoblin(colour: str, ground: str, random: Random) -> Pixels:
    """A zoblin, uint8 [64, 64, 3]; place and size vary by a little."""
    side = SIDE * SCALE
    canvas = Image.new("RGB", (side, side), PALETTE[ground])
    draw, body = ImageDraw.Draw(canvas), PALETTE[colour]
    x, y = (random.uniform(0.49, 0.51) * side, random.uniform(0.575, 0.59) * side)
    radius = random.uniform(0.305, 0.32) * side
    for sign in (-1, 1):
        tip = (x + sign * 0.75 * radius, y - 1.5 * radius)
        draw.line([(x + sign * 0.3 * radius, y - 0.7 * radius), tip], body, int(0.17 * radius))
        _disc(draw, *tip, 0.2 * radius, body)
    _disc(draw, x, y, radius, body)
    for sign in (-1, 1):
        _disc(draw, x + sign * 0.42 * radius, y - 0.2 * radius, 0.36 * radius, WHITE)
        _disc(draw, x + sign * 0.38 * radius, y - 0.16 * radius, 0.19 * radius, BLACK)
    mouth = (x - 0.5 * radius, y + 0.05 * radius, x + 0.5 * radius, y + 0.72 * radius)
    draw.chord(mouth, 10, 170, BLACK if colour != "black" else WHITE)
    return np.asarray(canvas.reduce(SCALE))


def pairs(random: Random) -> list[tuple[str, str]]:
    """Twenty (colour, ground) pairs: every colour twice as the creature's and twice as the
    ground's.
    """
    names = list(PALETTE)
    while True:
        grounds = [random.sample(names, len(names)) for _ in range(COUNT // len(names))]
        chosen = [
            (name, ground) for row in grounds for name, ground in zip(names, row, strict=True)
        ]
        if len(set(chosen)) == COUNT and all(colour != ground for colour, ground in chosen):
            return chosen


def write_zoblins(out: Path, seed: int) -> None:
    """Write pictures and captions, `zoblin-01.png` beside `zoblin-01.txt`."""
    random = Random(seed)
    out.mkdir(parents=True, exist_ok=True)
    for number, (colour, ground) in enumerate(pairs(random), start=1):
        Image.fromarray(zoblin(colour, ground, random)).save(
            out / f"zoblin-{number:02}.png", optimize=True
        )
        a = "an" if colour[0] in "aeiou" else "a"
        a_ground = f"{'an' if ground[0] in 'aeiou' else 'a'} {ground}"
        (out / f"zoblin-{number:02}.txt").write_text(f"{a} {colour} zoblin on {a_ground} ground\n")
