"""Sample files a person can judge at a glance: pictures as a grid, answers side by side."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from acmsao_cli.models.base import Sample
from acmsao_cli.writing import own_folder, write_whole

TILE = 224
MARGIN = 10
LABEL_WIDTH = 76
CAPTION_HEIGHT = 54
INK, PAPER = (30, 34, 40), (250, 250, 248)


def write_samples(samples: Sequence[Sample], folder: Path) -> None:
    """Keep `samples` in `folder`: pictures as NN.png, prompts and texts in samples.jsonl."""
    own_folder(folder)
    lines = []
    for index, sample in enumerate(samples):
        row = {"prompt": sample.prompt}
        if sample.image is not None:
            row["image"] = f"{index:02d}.png"
            write_whole(folder / row["image"], png(sample.image))
        if sample.text is not None:
            row["text"] = sample.text
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_whole(folder / "samples.jsonl", "".join(lines))


def read_samples(folder: Path) -> list[Sample]:
    """What `write_samples` kept; empty if there is nothing."""
    file = folder / "samples.jsonl"
    if not file.is_file():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        Sample(
            row["prompt"],
            Image.open(folder / row["image"]).copy() if "image" in row else None,
            row.get("text"),
        )
        for row in rows
    ]


def write_comparison(stages: Mapping[str, Sequence[Sample]], folder: Path) -> Path | None:
    """Before beside after in one file: before-after.png or before-after.md."""
    stages = paired({name: samples for name, samples in stages.items() if samples})
    if not stages:
        return None
    first = next(iter(stages.values()))
    if first[0].image is not None:
        path = folder / "before-after.png"
        write_whole(path, png(comparison_grid(stages)))
    else:
        path = folder / "before-after.md"
        write_whole(path, comparison_text(stages))
    return path


def paired(stages: Mapping[str, Sequence[Sample]]) -> dict[str, list[Sample]]:
    """The samples whose prompt every stage has, in the same order: prompts may have changed.

    A prompt that stands twice is drawn with two seeds, so its first is paired with its first.
    """
    numbered = {name: dict(number_prompts(samples)) for name, samples in stages.items()}
    common = [
        key
        for key in next(iter(numbered.values()), {})
        if all(key in found for found in numbered.values())
    ]
    return {name: [found[key] for key in common] for name, found in numbered.items() if common}


def number_prompts(samples: Sequence[Sample]) -> Iterator[tuple[tuple[str, int], Sample]]:
    """Each sample under its prompt and how often that came before."""
    seen: Counter[str] = Counter()
    for sample in samples:
        yield (sample.prompt, seen[sample.prompt]), sample
        seen[sample.prompt] += 1


def comparison_text(stages: Mapping[str, Sequence[Sample]]) -> str:
    """Markdown: each prompt with the answer of each stage."""
    names = list(stages)
    blocks = []
    for samples in zip(*stages.values(), strict=True):
        answers = [
            f"- **{name}**: {' '.join((sample.text or '').split())}"
            for name, sample in zip(names, samples, strict=True)
        ]
        blocks.append("\n".join([f"### {samples[0].prompt}", "", *answers]))
    return "\n\n".join(blocks) + "\n"


def comparison_grid(stages: Mapping[str, Sequence[Sample]]) -> Image.Image:
    """One row for each stage, one column for each prompt, the prompt beneath."""
    prompts = [sample.prompt for sample in next(iter(stages.values()))]
    width = LABEL_WIDTH + len(prompts) * (TILE + MARGIN) + MARGIN
    height = MARGIN + len(stages) * (TILE + MARGIN) + CAPTION_HEIGHT
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    label, caption = ImageFont.load_default(18), ImageFont.load_default(15)
    for row, (name, samples) in enumerate(stages.items()):
        top = MARGIN + row * (TILE + MARGIN)
        draw.text((MARGIN, top + TILE // 2), name, INK, label, anchor="lm")
        for column, sample in enumerate(samples):
            assert sample.image is not None  # a family's samples are all of one kind
            left = LABEL_WIDTH + MARGIN + column * (TILE + MARGIN)
            sheet.paste(fit_tile(sample.image), (left, top))
    for column, prompt in enumerate(prompts):
        left = LABEL_WIDTH + MARGIN + column * (TILE + MARGIN)
        text = wrapped(prompt, caption, TILE)
        place = (left + TILE // 2, height - CAPTION_HEIGHT)
        draw.multiline_text(place, text, INK, caption, "ma", align="center")
    return sheet


def fit_tile(image: Image.Image) -> Image.Image:
    """The picture on a square tile, whole."""
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    tile = Image.new("RGB", (TILE, TILE), PAPER)
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    tile.paste(resized, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    return tile


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text` in at most three lines of `width` pixels."""
    lines = [""]
    for word in text.split():
        candidate = f"{lines[-1]} {word}".strip()
        if font.getlength(candidate) <= width or not lines[-1]:
            lines[-1] = candidate
        else:
            lines.append(word)
    if len(lines) > 3:
        lines[2:] = [lines[2] + " ..."]
    return "\n".join(lines)


def png(image: Image.Image) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
