"""The procedural picture world: one coloured shape on a coloured ground, captioned so.

What a caption leaves unsaid has its default: medium size, in the middle. So a caption settles its
picture.
"""

import hashlib
import math
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]
Point = tuple[float, float]

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (245, 135, 25),
    "yellow": (250, 222, 50),
    "green": (45, 160, 70),
    "blue": (45, 85, 215),
    "purple": (130, 50, 175),
    "pink": (250, 150, 195),
    "white": (248, 248, 248),
    "black": (20, 20, 22),
    "gray": (130, 130, 132),
}
SIZES = {"small": 0.19, "medium": 0.27, "big": 0.38}
PLACES: dict[str, Point] = {
    "middle": (0.5, 0.5),
    "top left": (0.3, 0.3),
    "top right": (0.7, 0.3),
    "bottom left": (0.3, 0.7),
    "bottom right": (0.7, 0.7),
}
SUPERSAMPLE = 4
HOLD_OUT_ONE_IN = 8


def _regular(corners: int, inner: float) -> list[Point]:
    """A star polygon, first point up: tips at radius 1, notches at radius `inner`."""
    radii = [1.0, inner] * corners
    return [
        (r * math.sin(math.pi * i / corners), -r * math.cos(math.pi * i / corners))
        for i, r in enumerate(radii)
    ]


def _heart() -> list[Point]:
    angles = [2 * math.pi * i / 60 for i in range(60)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16
            - 0.1,
        )
        for t in angles
    ]


def _cross(arm: float) -> list[Point]:
    corner = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
    quarter_turns = [
        lambda x, y: (x, y),
        lambda x, y: (-y, x),
        lambda x, y: (-x, -y),
        lambda x, y: (y, -x),
    ]
    return [turn(x, y) for turn in quarter_turns for x, y in corner]


_DISC: list[Point] = [(math.cos(math.tau * i / 60), math.sin(math.tau * i / 60)) for i in range(60)]
# Outlines in a frame of [-1, 1] squared, y down; a second outline is a hole.
SHAPES: dict[str, tuple[list[Point], ...]] = {
    "circle": (_DISC,),
    "square": ([(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],),
    "triangle": ([(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)],),
    "star": (_regular(5, 0.42),),
    "ring": (_DISC, [(0.58 * x, 0.58 * y) for x, y in _DISC]),
    "cross": (_cross(0.32),),
    "heart": (_heart(),),
    "diamond": ([(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)],),
}


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in the words of its caption."""

    shape: str
    colour: str
    ground: str
    size: str = "medium"
    place: str = "middle"

    @property
    def held_out(self) -> bool:
        """Whether this (shape, colour, ground) is kept from training; a fixed eighth of them."""
        digest = hashlib.sha256(f"{self.shape}/{self.colour}/{self.ground}".encode()).digest()
        return digest[0] % HOLD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class View:
    """The window of the scene a picture shows, as SDXL's size conditioning states it."""

    original: tuple[int, int]
    crop: tuple[int, int]
    side: int

    @property
    def time_ids(self) -> tuple[int, ...]:
        """(original height, width, crop top, left, target height, width)."""
        return (*self.original, *self.crop, self.side, self.side)


def full_view(side: int) -> View:
    """The whole square scene."""
    return View((side, side), (0, 0), side)


def random_view(random: Random, side: int, cropped_share: float = 0.15) -> View:
    """Mostly the whole scene; sometimes a square window of an oblong one."""
    if random.random() >= cropped_share:
        return full_view(side)
    longer = side + random.randrange(side // 8, side // 2 + 1, side // 16)
    offset = random.randrange(0, longer - side + 1, side // 16)
    tall = random.random() < 0.5
    return (
        View((longer, side), (offset, 0), side) if tall else View((side, longer), (0, offset), side)
    )


def random_scene(random: Random, held_out: bool = False) -> Scene:
    """A scene from the training share, or from the held-out share; the middle comes most often."""
    while True:
        colour, ground = random.sample(list(PALETTE), 2)
        scene = Scene(random.choice(list(SHAPES)), colour, ground)
        if scene.held_out == held_out:
            break
    size = random.choice(["medium", "medium", "small", "big"])
    away = size != "big" and random.random() < 0.4
    place = random.choice([p for p in PLACES if p != "middle"]) if away else "middle"
    return Scene(scene.shape, scene.colour, scene.ground, size, place)


def shape_mask(
    shape: str, height: int, width: int, centre: Point, radius: float
) -> NDArray[np.float32]:
    """Coverage of each pixel by the shape, float32 [height, width] in 0..1; centre (x, y) in
    pixels.
    """
    scale = SUPERSAMPLE
    canvas = Image.new("L", (width * scale, height * scale))
    draw = ImageDraw.Draw(canvas)
    for outline, fill in zip(SHAPES[shape], (255, 0), strict=False):
        draw.polygon(
            [
                ((centre[0] + radius * x) * scale, (centre[1] + radius * y) * scale)
                for x, y in outline
            ],
            fill,
        )
    return np.asarray(canvas.reduce(scale), dtype=np.float32) / 255


def _shade(random: Random, name: str, spread: int) -> NDArray[np.float32]:
    return np.array([c + random.uniform(-spread, spread) for c in PALETTE[name]], dtype=np.float32)


def render(scene: Scene, view: View, random: Random, spread: int = 6) -> Pixels:
    """The picture, uint8 [side, side, 3]; shades, place and size vary by a little."""
    height, width = view.original
    short = min(height, width)
    x, y = PLACES[scene.place]
    centre = (
        x * width + random.uniform(-0.02, 0.02) * short,
        y * height + random.uniform(-0.02, 0.02) * short,
    )
    radius = SIZES[scene.size] * short * random.uniform(0.94, 1.06)
    mask = shape_mask(scene.shape, height, width, centre, radius)[..., None]
    ground, colour = _shade(random, scene.ground, spread), _shade(random, scene.colour, spread)
    picture = np.clip(ground + mask * (colour - ground), 0, 255).round().astype(np.uint8)
    top, left = view.crop
    return picture[top : top + view.side, left : left + view.side]


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def caption_ways(scene: Scene) -> list[str]:
    """Every way to say this scene; all of them mean the same picture."""
    size = "" if scene.size == "medium" else f"{scene.size} "
    thing = f"{size}{scene.colour} {scene.shape}"
    at_place = "" if scene.place == "middle" else f" in the {scene.place}"
    comma_place = "" if scene.place == "middle" else f", {scene.place}"
    ground, a_ground = scene.ground, _article(scene.ground)
    return [
        f"{_article(thing)} on {a_ground} ground{at_place}",
        f"{_article(thing)}{at_place} on {a_ground} ground",
        f"{thing}{comma_place}, {ground} background",
        f"a picture of {_article(thing)}{at_place}, the background is {ground}",
        f"{_article(thing)}{at_place} over {a_ground} background",
        f"{ground} ground with {_article(thing)}{at_place}",
        f"{thing} on {ground}{comma_place}",
    ]


def caption(scene: Scene, random: Random) -> str:
    """One of the ways to say this scene."""
    return random.choice(caption_ways(scene))


def made_up_word(random: Random) -> str:
    """A word of two or three open syllables, such as "tikola"."""
    return "".join(
        random.choice("bdfgklmnprstvz") + random.choice("aeiou")
        for _ in range(random.randint(2, 3))
    )


def estranged(words: str, scene: Scene, random: Random) -> str:
    """The caption with a made-up word for the shape: whatever a thing is called, its colour and
    ground still hold.
    """
    return words.replace(scene.shape, made_up_word(random))
