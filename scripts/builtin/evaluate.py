"""Measure tiny-sdxl by plain image analysis: ground, colour and shape of 200 held-out scenes.

No learned model judges: colours go to the nearest palette name, shapes to the template of greatest
overlap.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import diffusers
import numpy as np
import torch
import transformers
from diffusers import StableDiffusionXLPipeline
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from world import PALETTE, SHAPES, Pixels, Scene, caption, random_scene, shape_mask

TEMPLATE = 48
SOFTNESS = (0, 4, 8)
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Seen:
    """What the analysis found in a picture; `shape` and `colour` are "" where nothing stands out of
    the ground.
    """

    ground: str
    colour: str
    shape: str


def _nearest_colour(rgb: NDArray[np.float32]) -> str:
    return min(PALETTE, key=lambda name: float(np.square(rgb - np.array(PALETTE[name])).sum()))


def _framed(mask: Mask) -> NDArray[np.float32]:
    """The mask's bounding box in the middle of a square, scaled to [TEMPLATE, TEMPLATE]; its
    proportions stay.
    """
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    side = max(cut.shape)
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - cut.shape[0]) // 2, (side - cut.shape[1]) // 2
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = 255 * cut
    scaled = Image.fromarray(square).resize((TEMPLATE, TEMPLATE), Image.Resampling.BILINEAR)
    return np.asarray(scaled, dtype=np.float32) / 255


@cache
def _templates(shape: str) -> list[NDArray[np.float32]]:
    """The shape as drawn and as softer and softer pencils would draw it: soft tips do not reach."""
    drawn = Image.fromarray((255 * shape_mask(shape, 96, 96, (48, 48), 40)).astype(np.uint8))
    return [
        _framed(np.asarray(drawn.filter(ImageFilter.GaussianBlur(softness))) > 127)
        for softness in SOFTNESS
    ]


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def _largest_part(mask: Mask) -> Mask:
    """The largest 4-connected part; specks elsewhere are not the shape."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.pad(labels, 1)
        grown = np.maximum.reduce(
            [labels, spread[:-2, 1:-1], spread[2:, 1:-1], spread[1:-1, :-2], spread[1:-1, 2:]]
        )
        grown = np.where(mask, grown, 0)
        if np.array_equal(grown, labels):
            break
        labels = grown
    counts = np.bincount(labels[mask]) if mask.any() else np.zeros(1, dtype=np.int64)
    return labels == counts.argmax() if mask.any() else mask


def see(picture: Pixels) -> Seen:
    """Name the ground, and the colour and shape of what stands on it."""
    pixels = picture.astype(np.float32)
    border = np.concatenate(
        [pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, 0], pixels[:, -1]]
    )
    ground = np.median(border, axis=0)
    distance = np.sqrt(np.square(pixels - ground).sum(-1))
    far = float(np.quantile(distance, 0.99))
    mask = _largest_part(distance > max(24.0, 0.5 * far))
    if mask.sum() < 12:
        return Seen(_nearest_colour(ground), "", "")
    colour = np.median(pixels[mask & (distance > 0.8 * far)], axis=0)
    framed = _framed(mask)
    shape = max(SHAPES, key=lambda name: max(_overlap(framed, t) for t in _templates(name)))
    return Seen(_nearest_colour(ground), _nearest_colour(colour), shape)


def shares(scenes: list[Scene], seen: list[Seen]) -> dict[str, float]:
    """Shares of pictures with each thing right."""
    rights = {
        "ground": [a.ground == b.ground for a, b in zip(scenes, seen, strict=True)],
        "colour": [a.colour == b.colour for a, b in zip(scenes, seen, strict=True)],
        "shape": [a.shape == b.shape for a, b in zip(scenes, seen, strict=True)],
    }
    rights["colour_and_shape"] = [
        a and b for a, b in zip(rights["colour"], rights["shape"], strict=True)
    ]
    rights["all"] = [
        a and b for a, b in zip(rights["colour_and_shape"], rights["ground"], strict=True)
    ]
    return {name: round(sum(right) / len(right), 4) for name, right in rights.items()}


def held_out_prompts(count: int, seed: int) -> list[tuple[Scene, str]]:
    """Scenes whose (shape, colour, ground) was never trained on, each with one caption."""
    random = Random(seed)
    scenes = [random_scene(random, held_out=True) for _ in range(count)]
    return [(scene, caption(scene, random)) for scene in scenes]


def sample(
    pipeline: StableDiffusionXLPipeline,
    prompts: list[str],
    steps: int,
    guidance: float,
    batch: int = 10,
) -> Iterator[Pixels]:
    """One picture for each prompt, seeded by the prompt's index."""
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        made = pipeline(
            prompt=part,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=seeds,
            output_type="np",
        )
        yield from (255 * made.images).round().astype(np.uint8)


def grid(pictures: list[Pixels], columns: int) -> Image.Image:
    """Pictures side by side, row by row."""
    rows = [
        np.concatenate(pictures[i : i + columns], axis=1) for i in range(0, len(pictures), columns)
    ]
    return Image.fromarray(
        np.concatenate([row for row in rows if row.shape == rows[0].shape], axis=0)
    )


def load_pipeline(folder: Path) -> StableDiffusionXLPipeline:
    """The pipeline in fp32, without a progress bar."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _parameters(pipeline: StableDiffusionXLPipeline) -> dict[str, int]:
    parts = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {part: sum(p.numel() for p in getattr(pipeline, part).parameters()) for part in parts}


def main() -> None:
    """Sample, judge, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("acmsao_cli/builtin/tiny-sdxl"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument(
        "--grid", type=Path, help="where to write a picture of the first 40 samples"
    )
    options = parser.parse_args()
    pipeline = load_pipeline(options.model)
    prompts = held_out_prompts(options.count, options.seed)
    pictures = list(
        sample(pipeline, [text for _, text in prompts], options.steps, options.guidance)
    )
    figures = shares([scene for scene, _ in prompts], [see(picture) for picture in pictures])
    print(json.dumps(figures))
    if options.grid:
        grid(pictures[:40], 8).save(options.grid)
    if options.json:
        card = options.model / "training.json"
        report = {
            "what": "share of pictures right by image analysis; held-out shape, colour and ground",
            "command": "python scripts/builtin/evaluate.py " + " ".join(sys.argv[1:]),
            "prompts": options.count,
            "sampler": {
                "name": "euler",
                "steps": options.steps,
                "guidance": options.guidance,
                "seed": options.seed,
            },
            "right": figures,
            "parameters": _parameters(pipeline),
            "training": json.loads(card.read_text()) if card.exists() else {},
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
            },
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
