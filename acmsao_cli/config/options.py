"""Options of the optimizer's parts: what they take in words, and values held to it.

Settling turns what a file says into the one form that equal settings share: a whole number where
any number goes is that number, a part without options is its name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from acmsao_cli.config.choices import Options, Wanted, parts, storage_in
from acmsao_cli.config.reading import describe
from acmsao_cli.config.suggest import closest

SOCKETS = ("rule", "momentum", "ratio", "schedule")


class Complaint(NamedTuple):
    """What is wrong with a value, and how to mend it."""

    message: str
    hint: str


class Settled(NamedTuple):
    """A value in its one form, and what is wrong with it."""

    value: Any
    complaints: list[Complaint]


def settle_part(kind: str, spec: Any, where: str) -> Settled:
    """Settle a part that is named, or a mapping of its `name` and options."""
    given = dict(spec) if isinstance(spec, Mapping) else {"name": spec}
    name, known = given.pop("name", None), parts()[kind]
    words = kind.replace("_", " ")
    if not isinstance(name, str):
        hint = f"known: {', '.join(sorted(known))}"
        complaint = Complaint(f"{where} must name a {words}; found {describe(spec)}", hint)
        return Settled(spec, [complaint])
    if name not in known:
        message = f"{where} names an unknown {words} `{name}`"
        return Settled(spec, [Complaint(message, suggestion(name, known))])
    values, complaints = settle_options(name, known[name], given, where)
    alone = not values and kind != "schedule"  # a course is a mapping, lest it look like a text
    return Settled(name if alone else {"name": name, **values}, complaints)


def settle_options(
    name: str, known: Options, given: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], list[Complaint]]:
    """Settle what is given to the part `name`, which has the options `known`."""
    values: dict[str, Any] = {}
    missing = [option for option, one in known.items() if one.required and option not in given]
    complaints = [
        Complaint(f"{where} names `{name}` without its `{option}`", words_for(known[option].wanted))
        for option in missing
    ]
    for option, value in given.items():
        if option not in known:
            values[option] = value  # left to be told of
            message = f"{where} gives `{name}` an unknown option `{option}`"
            complaints.append(Complaint(message, suggestion(option, known)))
            continue
        settled = settle(known[option].wanted, value, f"`{option}` of `{name}` in {where}")
        values[option] = settled.value
        complaints += settled.complaints
    return values, complaints


def settle_storage(name: str, where: str) -> list[Complaint]:
    """Say what is wrong with a storage's name; `offloaded(...)` may stand around one."""
    known = parts()["storage"]
    inner = storage_in(name)
    if inner in known:
        return []
    if inner == name and name.startswith("offloaded"):
        hint = "write offloaded(NAME), as in offloaded(bf16)"
        return [Complaint(f"{where} names an unknown storage `{name}`", hint)]
    return [Complaint(f"{where} names an unknown storage `{name}`", suggestion(inner, known))]


def settle(wanted: Sequence[Wanted], value: Any, where: str) -> Settled:
    """Settle a value that may be of several kinds."""
    fitting = next((one for one in wanted if _fits(one, value)), None)
    if fitting is None:
        message = f"{where} must be {words_for(wanted)}; found {describe(value)}"
        near = closest(value, _choices(wanted)) if isinstance(value, str) else None
        return Settled(value, [Complaint(message, f"did you mean `{near}`?" if near else "")])
    if fitting.kind == "number":
        return Settled(float(value), [])
    if fitting.kind in SOCKETS:
        return settle_part(fitting.kind, value, where)
    if fitting.kind == "list":
        entries = [settle(fitting.items, entry, f"an entry of {where}") for entry in value]
        complaints = [complaint for entry in entries for complaint in entry.complaints]
        return Settled([entry.value for entry in entries], complaints)
    return Settled(value, [])


def words_for(wanted: Sequence[Wanted]) -> str:
    """Say what values an option takes."""
    return ", or ".join(_words(one) for one in wanted) or "left to the program"


def suggestion(word: str, known: Collection[str]) -> str:
    """Say which known word was probably meant, or list them."""
    if not known:
        return "it has no options"
    near = closest(word, known)
    listing = f"known: {', '.join(sorted(known))}"
    return f"did you mean `{near}`? {listing}" if near else listing


def _fits(wanted: Wanted, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match wanted.kind:
        case "null":
            return value is None
        case "truth":
            return isinstance(value, bool)
        case "count":
            return number and isinstance(value, int)
        case "number":
            return number and not math.isnan(value)
        case "text":
            return isinstance(value, str) and (not wanted.choices or value in wanted.choices)
        case "list":
            length = wanted.length or len(value) if isinstance(value, list | tuple) else -1
            return isinstance(value, list | tuple) and len(value) == length
        case "schedule" | "phases":
            return isinstance(value, Mapping)
    return isinstance(value, str | Mapping)


def _choices(wanted: Sequence[Wanted]) -> list[str]:
    return [choice for one in wanted for choice in one.choices]


def _words(wanted: Wanted) -> str:
    match wanted.kind:
        case "null":
            return "null"
        case "truth":
            return "true or false"
        case "count":
            return "a whole number"
        case "number":
            return "a number"
        case "text":
            return f"one of {', '.join(wanted.choices)}" if wanted.choices else "a text"
        case "list":
            of = f" of {wanted.length}" if wanted.length else ""
            return f"a list{of}, each {words_for(wanted.items)}"
        case "schedule":
            return "a schedule, as in {name: milestones, ...}"
        case "phases":
            return "phases by name, as in {high: {until: 0.25, factor: 1.1, recency: 2}, ...}"
    return f"a {wanted.kind}, by name or as {{name: ..., with its options}}"
