"""A feature's parameters as people write them: NAME=VALUE, with dates, hours and amounts of money.

Owns the spelling only; what a value may be is checked by the feature itself (`commons.features`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from commons.errors import ConfigError
from commons.features import FEATURES

_MONEY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Z]{3})")
_HOURS = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?) ?h")


Pair = tuple[str, str]


def split_settings(texts: Sequence[str]) -> list[Pair]:
    """Raises ConfigError for a text that is not NAME=VALUE."""
    pairs = [text.partition("=")[::2] for text in texts]
    wrong = [text for text in texts if not text.partition("=")[0] or "=" not in text]
    if wrong:
        raise ConfigError([f"--set {text}: expected NAME=VALUE, e.g. --set trunk=int8" for text in wrong])
    return pairs


def read_settings(feature: str, pairs: Sequence[Pair], currency: str) -> dict[str, Any]:
    """`steps=30` -> {"steps": 30}; what is no JSON is a word.

    `expires=2027-01-31` becomes `expires_ms` where the feature has that; an amount may be written `12.50 EUR` (in
    the consortium's currency) or `40h` (of a device). Raises ConfigError naming the text that cannot be read.
    """
    entry = FEATURES.get(feature)
    fields = entry.parameters.model_fields if entry else {}
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name not in fields and f"{name}_ms" in fields:
            found[f"{name}_ms"] = _unix_ms(name, value)
        else:
            found[name] = _value(value, currency)
    return found


def read_micro(text: str, currency: str) -> int:
    """`250000` (micro) or `0.25 EUR`. Raises ConfigError."""
    value = _value(text, currency)
    if type(value) is not int or value < 0:
        raise ConfigError([f"{text!r} is no amount: write whole micro, or money like 0.25 {currency}"])
    return value


def read_hours(text: str) -> int:
    """Hours, `1.5` or `1.5h`, in milliseconds. Raises ConfigError for what is not whole milliseconds, from 1."""
    written = _HOURS.fullmatch(f"{text.strip().removesuffix('h').strip()} h")
    amount_ms = Decimal(written[1]) * 3_600_000 if written else Decimal(0)
    if amount_ms < 1 or amount_ms != int(amount_ms):
        raise ConfigError([f"{text!r} are no hours: write a number above 0 like 40 or 1.5"])
    return int(amount_ms)


def _value(value: str, currency: str) -> Any:
    if money := _MONEY.fullmatch(value):
        if money[2] != currency:
            raise ConfigError([f"{value}: the consortium's currency is {currency}, not {money[2]}"])
        return int(Decimal(money[1]) * 1_000_000)
    if _HOURS.fullmatch(value):
        return read_hours(value)
    try:
        return json.loads(value)
    except ValueError:
        return value


def _unix_ms(name: str, value: str) -> int:
    """A date without a time begins the day; without a zone it is UTC."""
    try:
        date = datetime.fromisoformat(f"{value[:-1]}+00:00" if value.endswith("Z") else value)
    except ValueError:
        raise ConfigError(
            [f"--set {name}={value}: expected a date like 2027-01-31 or 2027-01-31T18:00Z"]
        ) from None
    date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return int(date.timestamp()) * 1000
