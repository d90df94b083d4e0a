"""Where a data set lies, and which files are there: one bounded walk that stays in the folder."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from acmsao_cli import builtin
from acmsao_cli.data.base import Problem
from acmsao_cli.data.files import printable, reason
from acmsao_cli.errors import DataError
from acmsao_cli.privacy import at_home

MAX_DEPTH = 16
MAX_FILES = 1_000_000


@dataclass(frozen=True)
class Source:
    """A data set on disk: `root` is its folder, `files` lie in it, sorted by name.

    `name` is what run.yaml calls it; a single file has its parent as root. Links are followed
    only where they stay inside the root.
    """

    name: str
    root: Path
    files: tuple[PurePosixPath, ...]
    single: bool = False
    problems: tuple[Problem, ...] = ()

    def place(self, file: PurePosixPath | str, line: int | None = None) -> str:
        """How messages name a file, or one of its lines."""
        path = printable(self.name if self.single else f"{self.name.rstrip('/')}/{file}")
        return path if line is None else f"{path}:{line}"

    def path(self, file: PurePosixPath) -> Path:
        """Where a file of this source is."""
        return self.root / file

    def with_suffix(self, *suffixes: str) -> Iterator[PurePosixPath]:
        """The files that end so, in whichever case."""
        return (file for file in self.files if file.suffix.lower() in suffixes)

    def contains(self, path: Path) -> bool:
        """Whether `path`, with all links resolved, lies inside the root."""
        try:
            return path.resolve().is_relative_to(self.root)
        except (OSError, ValueError, RuntimeError):
            return False

    def contents(self) -> str:
        """What is here, in a few words: `12 .png, 3 .txt`."""
        return _counted(self.files) or "no files"

    def unused(self, *suffixes: str) -> Iterator[Problem]:
        """One warning for all files that do not end so: a format passes over nothing silently."""
        rest = [file for file in self.files if file.suffix.lower() not in suffixes]
        if rest:
            message = f"not used: {_counted(rest)}"
            yield Problem(printable(self.name), message, severity="warning")


def _counted(files: Iterable[PurePosixPath]) -> str:
    counts = Counter(file.suffix.lower() or file.name for file in files)
    shown = [f"{number} {printable(kind, 40)}" for kind, number in counts.most_common(6)]
    return ", ".join([*shown, "..."] if len(counts) > 6 else shown)


def locate(name: str) -> Source:
    """The data set that a recipe calls `name`. Raises DataError if nothing is there."""
    inside = builtin.name_in(name)
    path = Path(name).expanduser() if inside is None else _builtin(inside)
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise _missing(path, error) from error
    if resolved.is_dir():
        return _walk(at_home(name), resolved)
    return Source(at_home(name), resolved.parent, (PurePosixPath(resolved.name),), single=True)


def _builtin(name: str) -> Path:
    if name in builtin.DATA:
        return builtin.FOLDER / builtin.DATA[name]
    raise DataError(
        f"data.source: there is no data set `{builtin.PREFIX}{printable(name)}`",
        hint=f"there are: {', '.join(builtin.PREFIX + known for known in builtin.DATA)}",
    )


def _missing(path: Path, error: BaseException) -> DataError:
    """Say that a path is not there, with what resembles it."""
    shown = printable(str(path))
    if not isinstance(error, FileNotFoundError):
        return DataError(f"data.source {shown}: cannot be opened: {reason(error)}")
    try:
        beside = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return DataError(
            f"data.source {shown}: neither this nor the folder around it exists",
            hint="give the path of a file or folder on this machine; nothing is downloaded",
        )
    close = difflib.get_close_matches(path.name, beside, n=3)
    listed = ", ".join(printable(str(path.parent / name)) for name in close)
    around = printable(", ".join(beside[:20])) or "nothing"
    return DataError(
        f"data.source {shown}: does not exist",
        hint=f"did you mean {listed}?"
        if close
        else f"in {printable(str(path.parent))} there is: {around}",
    )


def _walk(name: str, root: Path) -> Source:
    """List the files below `root`; hidden ones are left out, what cannot be read is a problem."""
    files: list[PurePosixPath] = []
    problems: list[Problem] = []
    source = Source(name, root, ())
    folders = [PurePosixPath()]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            problems.append(Problem(source.place(folder), f"cannot be listed: {reason(error)}"))
            continue
        for entry in entries:
            file = folder / entry.name
            if entry.name.startswith("."):
                continue
            problem = _unwanted(source, entry, file)
            if problem is not None:
                problems.append(Problem(source.place(file), problem, name=str(file)))
            elif entry.is_dir():
                folders.append(file)
            else:
                files.append(file)
        if len(files) > MAX_FILES:
            raise DataError(f"{printable(name)}: more than {MAX_FILES:,} files")
    problems.sort(key=lambda problem: problem.place)
    return Source(name, root, tuple(sorted(files, key=str)), problems=tuple(problems))


def _unwanted(source: Source, entry: os.DirEntry[str], file: PurePosixPath) -> str | None:
    """Why an entry of a folder is not used, if it is not."""
    if entry.is_symlink():
        if not os.path.exists(entry.path):
            return "a link to nothing"
        if not source.contains(Path(entry.path)):
            return "a link that leaves the data folder; copy the file into it"
        if entry.is_dir():
            return "a link to a folder; folders are entered only where they are"
    if entry.is_dir() and len(file.parts) > MAX_DEPTH:
        return f"nested more than {MAX_DEPTH} folders deep"
    return None
