"""From the data section of a recipe to examples: find the source, tell its format, read it."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from acmsao_cli.config.causal_lm import TextData
from acmsao_cli.config.sdxl import ImageData
from acmsao_cli.data import formats
from acmsao_cli.data.base import Example, ImageExample, Problem, Reading, name_of
from acmsao_cli.data.files import printable
from acmsao_cli.data.images import Geometry, geometry
from acmsao_cli.data.registry import FORMATS, DataFormat
from acmsao_cli.data.source import Source, locate
from acmsao_cli.errors import ConfigError, DataError, InputError

# A file in `formats` is a format by being there.
for _module in pkgutil.iter_modules(formats.__path__):
    importlib.import_module(f"{formats.__name__}.{_module.name}")

MAX_LISTED = 20
# A crop that leaves less than this of a picture is worth telling.
LEAST_KEPT = 0.5

CONVERSIONS = {
    ".json": "turn .json into .jsonl, one object per line: jq -c '.[]' data.json > data.jsonl",
    ".csv": "turn .csv into .jsonl, one object per line",
    ".parquet": "turn .parquet into .jsonl, or save it with `datasets`: "
    "load_dataset('parquet', data_files=...)['train'].save_to_disk(FOLDER)",
}


def read(section: ImageData | TextData) -> Reading:
    """Everything at `section.source`, pictures by their headers only.

    Raises DataError where there is no data set at all; what is wrong with single files or lines is
    among the problems.
    """
    source = locate(section.source)
    chosen = _detect(source, section) if section.format == "auto" else FORMATS[section.format]
    _refuse_settings(chosen, section)
    examples: list[Example] = []
    problems = list(source.problems)
    for item in chosen.read(source, section):
        if isinstance(item, Problem):
            problems.append(item)
        else:
            examples.append(item)
    if not examples and all(problem.severity == "warning" for problem in problems):
        raise _nothing(source, [chosen])
    if isinstance(section, ImageData):
        problems += _size_warnings(printable(source.name), pictures(examples), section)
    return Reading(chosen.name, tuple(examples), tuple(problems))


def require(reading: Reading, section: ImageData | TextData) -> tuple[Example, ...]:
    """The examples to train on. Raises DataError that lists what is wrong, if that is not to be
    skipped, or is too much of it.
    """
    errors = bad(reading)
    hint = "`acmsao data check RECIPE` shows all that was found"
    if errors and section.on_bad == "error":
        what = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        raise DataError(
            f"{what} in the data (read as {reading.format}):{listed(errors)}",
            hint=f"{hint}; --set data.on_bad=skip leaves them out",
        )
    if not reading.examples:
        raise DataError(
            f"the data has no examples (read as {reading.format}){listed(errors)}", hint=hint
        )
    share = len(errors) / (len(errors) + len(reading.examples))
    if share > section.max_bad:
        raise DataError(
            f"{len(errors)} of {len(errors) + len(reading.examples)} items are bad, more than "
            f"data.max_bad {section.max_bad:g} allows:{listed(errors)}",
            hint=f"{hint}; --set data.max_bad={math.ceil(100 * share) / 100:g} allows so many",
        )
    return reading.examples


@dataclass
class Remaining:
    """What is left of a reading while its examples are encoded, where some turn out to be bad."""

    reading: Reading
    section: ImageData | TextData

    def leave_out(self, example: Example, error: InputError) -> None:
        """Count an example among the bad ones. Raises `error` if these are not to be skipped, and
        DataError if they have become too many.
        """
        if self.section.on_bad == "error":
            raise error
        self.reading = self.reading.without([Problem.of(example.place, error, name_of(example))])
        require(self.reading, self.section)


def bad(reading: Reading) -> list[Problem]:
    """What cannot be trained on."""
    return [problem for problem in reading.problems if problem.severity == "error"]


def listed(errors: Sequence[Problem]) -> str:
    """The first of them, a line each, and how many more there are."""
    lines = [str(problem) for problem in errors[:MAX_LISTED]]
    if len(errors) > MAX_LISTED:
        lines.append(f"and {len(errors) - MAX_LISTED} more")
    return "".join(f"\n  {line}" for line in lines)


def pictures(examples: Sequence[Example]) -> list[ImageExample]:
    """The examples that are pictures."""
    return [example for example in examples if isinstance(example, ImageExample)]


def geometries(
    examples: Sequence[ImageExample], section: ImageData
) -> Iterator[tuple[ImageExample, Geometry]]:
    """How each picture whose size is known will be scaled and cut."""
    for example in examples:
        if example.size is not None:
            yield (
                example,
                geometry(
                    *example.size,
                    section.resolution,
                    buckets=section.buckets,
                    bucket_step=section.bucket_step,
                ),
            )


def _kind(section: ImageData | TextData) -> str:
    return "images" if isinstance(section, ImageData) else "text"


def _detect(source: Source, section: ImageData | TextData) -> DataFormat:
    """The one format that the source is of."""
    known = [one for one in FORMATS.values() if one.kind == _kind(section)]
    found = [one for one in known if one.matches(source)]
    if not found:
        raise _nothing(source, known)
    if len(found) > 1:
        names = " or ".join(one.name for one in found)
        raise DataError(
            f"{printable(source.name)}: could be read as {names}",
            hint="say which: " + " or ".join(f"--set data.format={one.name}" for one in found),
        )
    return found[0]


def _nothing(source: Source, known: Sequence[DataFormat]) -> DataError:
    """Say what is there, and what would be accepted."""
    accepted = "".join(f"\n  {one.name}: {one.wants}" for one in known)
    conversions = [
        f"\n  {advice}" for suffix, advice in CONVERSIONS.items() if any(source.with_suffix(suffix))
    ]
    return DataError(
        f"{printable(source.name)}: no {known[0].kind} to train on; it holds {source.contents()}"
        f"{listed(source.problems)}",
        hint=f"accepted is{accepted}{''.join(conversions)}",
    )


def _refuse_settings(chosen: DataFormat, section: ImageData | TextData) -> None:
    """A setting that only another format knows must be as if it had not been given."""
    for one in FORMATS.values():
        for key in one.settings:
            if one is chosen or one.kind != chosen.kind:
                continue
            if getattr(section, key) != type(section).model_fields[key].default:
                raise ConfigError(
                    f"data.{key} is for data.format {one.name}; this data is read as {chosen.name}",
                    hint=f"leave data.{key} out, or --set data.format={one.name}",
                )


def _size_warnings(
    place: str, examples: Sequence[ImageExample], section: ImageData
) -> Iterator[Problem]:
    """One warning for all pictures that are too small, one for all that lose much to the crop."""
    plans = list(geometries(examples, section))
    small = [example for example, plan in plans if plan.upscaled]
    if small:
        message = f"{_some(small, plans)} smaller than the training size and will be scaled up"
        yield Problem(place, message, severity="warning")
    cut = [example for example, plan in plans if plan.kept < LEAST_KEPT]
    if cut:
        message = f"{_some(cut, plans)} too long or tall: more than half will be cut away"
        yield Problem(place, message, severity="warning")


def _some(some: Sequence[ImageExample], of: Sequence[object]) -> str:
    verb = "is" if len(some) == 1 else "are"
    return f"{len(some)} of {len(of)} pictures (the first: {some[0].place}) {verb}"
