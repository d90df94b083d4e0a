"""What a run never tells: where its user's home folder is, and what opens accounts.

A path below the home folder is written `~/...`, and read back as such; what looks like an access
token, or like a name and password in an address, becomes `***`.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

HOME = "~"
HIDDEN = "***"
# Tokens of the model hub; user and password in an address, also in one taken for a path, whose
# slashes were joined; a token in an address's query.
SECRETS = (
    (re.compile(r"\b(hf_|api_org_)[A-Za-z0-9]{16,}"), rf"\1{HIDDEN}"),
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*:/{1,2})[^/\s]+@"), rf"\1{HIDDEN}@"),
    (
        re.compile(r"([?&](?:access_|auth_)?(?:token|key)=)[^&\s'\"]+"),
        rf"\1{HIDDEN}",
    ),
)
# Variables that hold what opens an account; a shorter value than this could be any word.
HOLDS_SECRET = re.compile(
    r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|(?:API|ACCESS|SECRET|PRIVATE)_?KEY)$"
)
SHORTEST = 12


def at_home(path: str) -> str:
    """`path`, with `~` for the home folder it lies in; any other text stays as it is."""
    for home in _homes():
        if path == home:
            return HOME
        if path.startswith(home + os.sep):
            return HOME + path[len(home) :]
    return path


def without_home(text: str) -> str:
    """`text` with `~` wherever the home folder's path stands in it."""
    for home in _homes():
        text = _naming(home).sub(HOME, text)
    return text


def without_secrets(text: str) -> str:
    """`text` with `***` for every token and password in it, the environment's among them."""
    for value in _secrets_of_the_environment():
        text = text.replace(value, HIDDEN)
    for pattern, hidden in SECRETS:
        text = pattern.sub(hidden, text)
    return text


def holds_secret(text: str) -> bool:
    """Whether `text` has a token or a password in it."""
    return without_secrets(text) != text


def private(text: str) -> str:
    """`text` as it may be printed, logged and kept."""
    return without_home(without_secrets(text))


def private_values(value: Any) -> Any:
    """Plain values, paths among them, with every text in them `private`."""
    if isinstance(value, str):
        return private(value)
    if isinstance(value, PurePath):
        return type(value)(private(str(value)))
    if isinstance(value, Mapping):
        return {private_values(key): private_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([private_values(inner) for inner in value])
    return value


def _homes() -> tuple[str, ...]:
    """The home folder as it is called, and as it is called with all links resolved."""
    home = os.path.expanduser(HOME).rstrip(os.sep)
    if not os.path.isabs(home):  # there is none, or it is the root of all paths
        return ()
    return tuple(dict.fromkeys((os.path.normpath(home), _resolved(home))))


@functools.cache
def _resolved(path: str) -> str:
    return os.path.realpath(path)


@functools.cache
def _naming(home: str) -> re.Pattern[str]:
    """Where a text names `home` or what is in it, but no folder beside it of a longer name."""
    return re.compile(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])")


def _secrets_of_the_environment() -> list[str]:
    return [
        value
        for name, value in os.environ.items()
        if HOLDS_SECRET.search(name.upper()) and len(value) >= SHORTEST
    ]
