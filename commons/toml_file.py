"""Reading a TOML file that a person wrote into a typed model, with every mistake named at its line.

Serves the charter and a site's own file alike. Knows nothing of what the keys mean; cross-rules come from
the model's validators and from the caller.
"""

from __future__ import annotations

import copy
import difflib
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from commons.errors import ConfigError
from commons.toml_lines import KeyPath, Lines

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Problem:
    """One mistake: which key, and what to do about it."""

    path: KeyPath
    what: str


def load(
    path: Path,
    model: type[M],
    *,
    further: Callable[[M], Iterable[Problem]] = lambda _: (),
    stand_ins: Mapping[tuple[str, ...], Any] | None = None,
    place: Callable[[str, Mapping[str, Any]], KeyPath] = lambda *_: (),
) -> M:
    """The file as `model`. Raises ConfigError with all problems, each ``path:line: key: what (how to fix)``.

    `further` checks a value that is valid as such. `stand_ins` maps keys (list positions left out) to valid
    values that take the place of broken ones, so that the model's cross-rules are checked in the same pass;
    `place` finds the key a cross-rule's message speaks of.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError([f"{path}: there is no such file"]) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read as UTF-8 text ({error})"]) from error
    lines = Lines(text)
    data = _parse(path, text, lines)
    value, problems = check(data, model, stand_ins=stand_ins or {}, place=place)
    if value is not None:
        problems = list(further(value))
    if value is None or problems:
        found = [(lines.at(p.path), f"{_dotted(p.path, data)}{p.what}") for p in problems]
        raise ConfigError([f"{path}:{line}: {what}" for line, what in sorted(dict.fromkeys(found))])
    return value


def check(
    data: dict[str, Any],
    model: type[M],
    *,
    stand_ins: Mapping[tuple[str, ...], Any],
    place: Callable[[str, Mapping[str, Any]], KeyPath],
) -> tuple[M | None, list[Problem]]:
    """Parsed TOML as `model`, or all that is wrong with it."""
    problems = list(_not_finite(data))
    try:
        value = model.model_validate(_tuples(data))
        return (None, problems) if problems else (value, [])
    except ValidationError as error:
        details = error.errors(include_url=False)
    cross = [d for d in details if d["type"] == "value_error" and not d["loc"]]
    own = [d for d in details if d not in cross]
    problems += _merge(own, data, model)
    for detail in cross or _cross_rules(data, model, own, stand_ins):
        for what in str(detail["ctx"]["error"]).split("; "):
            problems.append(Problem(place(what, data), what))
    return None, problems


def _parse(path: Path, text: str, lines: Lines) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if lines.repeated:
            twice = [
                f"{path}:{again}: {_dotted(key, {})}given twice, first on line {first} (keep one of them)"
                for key, first, again in lines.repeated
            ]
            raise ConfigError(twice) from error
        found = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        what = str(error).partition(" (at ")[0]
        raise ConfigError([f"{path}:{line}: not valid TOML: {what} (correct this line)"]) from error


def _cross_rules(
    data: dict[str, Any],
    model: type[BaseModel],
    errors: Sequence[Any],
    stand_ins: Mapping[tuple[str, ...], Any],
) -> list[Any]:
    """What the model's own validator says once the broken keys have been replaced; [] when they cannot be."""
    repaired = copy.deepcopy(data)
    for detail in errors:
        loc = tuple(detail["loc"])
        if detail["type"] == "extra_forbidden":
            _put(repaired, loc, None)
            continue
        for end in range(len(loc), 0, -1):
            key = tuple(part for part in loc[:end] if isinstance(part, str))
            if isinstance(loc[end - 1], str) and key in stand_ins:
                _put(repaired, loc[:end], stand_ins[key])
                break
        else:
            return []
    try:
        model.model_validate(_tuples(repaired))
    except ValidationError as error:
        return [d for d in error.errors(include_url=False) if d["type"] == "value_error" and not d["loc"]]
    return []


def _put(data: Any, loc: KeyPath, value: Any) -> None:
    """Set, or with None remove, the value at `loc`; nothing when its parent is no container."""
    for part in loc[:-1]:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return
    if isinstance(data, dict):
        if value is None:
            data.pop(loc[-1], None)
        else:
            data[loc[-1]] = value


def _merge(details: Sequence[Any], data: Mapping[str, Any], model: type[BaseModel]) -> Iterable[Problem]:
    """One problem per key: a union reports once per member, at a path that ends in the member's name."""
    by_key: dict[KeyPath, list[Any]] = {}
    for detail in details:
        loc = tuple(detail["loc"])
        by_key.setdefault(_existing(loc, data, missing=detail["type"] == "missing"), []).append(detail)
    for key, found in by_key.items():
        if found[0]["type"] == "too_short" and len(_value(data, key)) >= found[0]["ctx"]["min_length"]:
            continue  # it holds enough, but broken ones, which are reported themselves
        yield Problem(key, _explain(key, found, data, model))


def _existing(loc: KeyPath, data: Any, *, missing: bool) -> KeyPath:
    """The part of a pydantic location that is a key of the document; one that is missing is named itself."""
    for depth, part in enumerate(loc):
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return loc[: depth + 1] if missing else loc[:depth]
    return loc


def _explain(key: KeyPath, details: Sequence[Any], data: Any, model: type[BaseModel]) -> str:
    detail = details[0]
    if len(details) > 1:
        kinds = sorted({_WANTED.get(d["type"], d["type"]) for d in details})
        return f"expected {' or '.join(kinds)}, found {describe(_value(data, key))}"
    match detail["type"]:
        case "extra_forbidden":
            known = _fields(model, key[:-1])
            close = difflib.get_close_matches(str(key[-1]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
            return f"unknown key ({hint})"
        case "missing":
            return "is missing (add it)"
        case "literal_error":
            return f"expected {detail['ctx']['expected']}, found {describe(detail['input'])}"
        case "string_pattern_mismatch":
            pattern = detail["ctx"]["pattern"]
            wanted = _PATTERNS.get(pattern, f"a string like {pattern}")
            return f"expected {wanted}, found {describe(detail['input'])}"
        case kind if kind in _WANTED:
            return f"expected {_WANTED[kind]}, found {describe(detail['input'])}"
        case _:
            what = detail["msg"].removeprefix("Value error, ")
            return f"{what[0].lower()}{what[1:]}, found {describe(detail['input'])}"


_WANTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list in [brackets]",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}

_PATTERNS = {
    r"^[a-z][a-z0-9-]{0,31}$": "lower-case letters, digits and hyphens, a letter first, at most 32",
    r"^[a-z][a-z0-9.-]{0,63}$": "lower-case letters, digits, dots and hyphens, a letter first, at most 64",
    r"^[A-Z]{3}$": "three capital letters such as EUR",
}


def describe(value: Any) -> str:
    """A TOML value in words, cut to a readable length."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return f"the integer {value}"
        case float():
            return f"the number {value}"
        case str():
            return f"the string {value[:60]!r}"
        case list() | tuple():
            return f"a list of {len(value)}"
        case dict():
            return "a table"
        case datetime() | date() | time():
            return f"the date or time {value.isoformat()}"
    return "nothing"


def _value(data: Any, key: KeyPath) -> Any:
    for part in key:
        data = data[part]
    return data


def _fields(model: type[BaseModel], key: KeyPath) -> list[str]:
    """Names of the fields of the table at `key`."""
    current: Any = model
    for part in key:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part)
        found = _model_in(field.annotation) if field else None
        if found is None:
            return []
        current = found
    return sorted(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, tuple, list, Union, types.UnionType):
        return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)
    return None


def _not_finite(value: Any, path: KeyPath = ()) -> Iterable[Problem]:
    if isinstance(value, float) and not math.isfinite(value):
        yield Problem(path, f"expected a finite number, found {value}")
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield from _not_finite(inner, (*path, key))


def _tuples(value: Any) -> Any:
    """Lists as tuples: strict models hold tuples, TOML knows only lists."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(inner) for inner in value)
    return value


def _dotted(path: KeyPath, data: Any) -> str:
    """``sites[berlin].partner: `` for a path; nothing for the document itself."""
    text = ""
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            data = None
        if isinstance(part, int):
            name = data.get("name") if isinstance(data, dict) else None
            text += f"[{name if isinstance(name, str) else part + 1}]"
        else:
            text += f".{part}" if text else part
    return f"{text}: " if text else ""
