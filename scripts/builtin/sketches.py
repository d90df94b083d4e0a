"""Pictures of anything: what the autoencoder sees beside the captioned world, so that new concepts
survive it.
"""

import math
from random import Random

import numpy as np
from PIL import Image, ImageDraw
from world import PALETTE, SHAPES, Pixels

Colour = tuple[int, int, int]
SCALE = 3


def _colour(random: Random) -> Colour:
    """A shade of the palette, or now and then any colour."""
    if random.random() < 0.3:
        return (random.randrange(256), random.randrange(256), random.randrange(256))
    r, g, b = (
        min(255, max(0, c + random.randint(-12, 12))) for c in random.choice(list(PALETTE.values()))
    )
    return (r, g, b)


def _ground(random: Random, side: int) -> Image.Image:
    """Plain, or a gradient from one colour to another."""
    if random.random() < 0.7:
        return Image.new("RGB", (side, side), _colour(random))
    ramp = np.linspace(0, 1, side, dtype=np.float32)
    angle = random.uniform(0, math.tau)
    slope = (
        0.5
        + 0.5
        * (np.cos(angle) * (2 * ramp - 1)[None] + np.sin(angle) * (2 * ramp - 1)[:, None])
        / 1.42
    )[..., None]
    start, end = np.array(_colour(random)), np.array(_colour(random))
    return Image.fromarray((start + slope * (end - start)).clip(0, 255).astype(np.uint8))


def _blob(draw: ImageDraw.ImageDraw, random: Random, side: int) -> None:
    corners = random.randint(3, 9)
    x, y = random.uniform(0, side), random.uniform(0, side)
    points = []
    for i in range(corners):
        radius, angle = random.uniform(0.06, 0.35) * side, math.tau * i / corners
        points.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    draw.polygon(points, _colour(random))


def _shape(draw: ImageDraw.ImageDraw, random: Random, side: int) -> None:
    x, y, radius = (
        random.uniform(0.1, 0.9) * side,
        random.uniform(0.1, 0.9) * side,
        random.uniform(0.08, 0.4) * side,
    )
    turn = random.uniform(0, math.tau)
    outline = random.choice(list(SHAPES.values()))[0]
    cos, sin = radius * math.cos(turn), radius * math.sin(turn)
    draw.polygon(
        [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in outline], _colour(random)
    )


def _stripes(draw: ImageDraw.ImageDraw, random: Random, side: int) -> None:
    colour, pitch, upright = (
        _colour(random),
        random.uniform(0.08, 0.3) * side,
        random.random() < 0.5,
    )
    for i in range(int(side / pitch) + 1):
        low, high = i * pitch, i * pitch + pitch / 2
        draw.rectangle((low, 0, high, side) if upright else (0, low, side, high), colour)


def _dots(draw: ImageDraw.ImageDraw, random: Random, side: int) -> None:
    colour, radius = _colour(random), random.uniform(0.02, 0.08) * side
    for _ in range(random.randint(2, 14)):
        x, y = random.uniform(0, side), random.uniform(0, side)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)


def _lines(draw: ImageDraw.ImageDraw, random: Random, side: int) -> None:
    colour, width = _colour(random), max(1, int(random.uniform(0.02, 0.06) * side))
    for _ in range(random.randint(1, 4)):
        draw.line(
            [(random.uniform(0, side), random.uniform(0, side)) for _ in range(2)], colour, width
        )


def _face(draw: ImageDraw.ImageDraw, random: Random, side: int) -> None:
    """A head with eyes and perhaps a mouth, any colours, any proportions."""
    x, y, radius = (
        random.uniform(0.3, 0.7) * side,
        random.uniform(0.3, 0.7) * side,
        random.uniform(0.18, 0.4) * side,
    )
    if random.random() < 0.8:
        draw.ellipse(
            (x - radius, y - radius * random.uniform(0.7, 1.2), x + radius, y + radius),
            _colour(random),
        )
    gap, eye, white = (
        random.uniform(0.25, 0.6) * radius,
        random.uniform(0.12, 0.36) * radius,
        _colour(random),
    )
    pupil, pupil_colour = eye * random.uniform(0.3, 0.8), _colour(random)
    if random.random() < 0.6:
        white, pupil_colour = (248, 248, 248), (20, 20, 22)
    for sign in (-1, 1):
        at, up = x + sign * gap, y - 0.2 * radius
        draw.ellipse((at - eye, up - eye, at + eye, up + eye), white)
        draw.ellipse((at - pupil, up - pupil, at + pupil, up + pupil), pupil_colour)
    if random.random() < 0.7:
        box = (x - 0.5 * radius, y - 0.1 * radius, x + 0.5 * radius, y + 0.6 * radius)
        draw.arc(box, 20, 160, pupil_colour, max(1, int(0.1 * radius)))


_THINGS = (_blob, _shape, _stripes, _dots, _lines, _face, _face)


def sketch(random: Random, side: int) -> Pixels:
    """A picture of one to three random things, uint8 [side, side, 3]."""
    canvas = _ground(random, side * SCALE)
    draw = ImageDraw.Draw(canvas)
    for _ in range(random.randint(1, 3)):
        random.choice(_THINGS)(draw, random, side * SCALE)
    return np.asarray(canvas.reduce(SCALE))
