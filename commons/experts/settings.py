"""The charter's `[model.config]`: which keys a family knows, of what type, with which defaults.

Keys carry the names of the family's Hugging Face config. Knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = bool | int | float | str | tuple[int, ...]
"""What a charter can write behind a key."""
LARGEST = 1 << 20
LAYERS_MAX = 1024


class SettingError(ValueError):
    """A key of `[model.config]` that is unknown, missing or impossible."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"model.config.{key} {what}")
        self.key, self.what = key, what


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to 2^20."""

    default: int | None = None
    """None: the charter must say it. May be below `least` and then stands for what follows from other keys."""
    least: int = 1

    def read(self, key: str, value: Value) -> Value:
        if isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= LARGEST:
            return value
        raise _wrong(key, f"a whole number from {self.least} to {LARGEST}", value)


@dataclass(frozen=True)
class Real:
    """A finite number above 0."""

    default: float

    def read(self, key: str, value: Value) -> Value:
        if isinstance(value, bool | str | tuple):
            raise _wrong(key, "a number", value)
        if 0 < value < float("inf"):
            return float(value)
        raise _wrong(key, "above 0", value)


@dataclass(frozen=True)
class Switch:
    default: bool

    def read(self, key: str, value: Value) -> Value:
        if isinstance(value, bool):
            return value
        raise _wrong(key, "true or false", value)


@dataclass(frozen=True)
class Layers:
    """Indices of layers, rising; none by default."""

    default: tuple[int, ...] = ()

    def read(self, key: str, value: Value) -> Value:
        if isinstance(value, tuple) and len(value) <= LAYERS_MAX and all(0 <= n < LARGEST for n in value):
            if list(value) == sorted(set(value)):
                return value
            raise _wrong(key, "indices of layers, each once and rising", value)
        raise _wrong(key, f"a list of at most {LAYERS_MAX} indices of layers", value)


Key = Whole | Real | Switch | Layers


@dataclass(frozen=True)
class Settings:
    """Checked values of every key of a family, defaults filled in."""

    values: Mapping[str, Value]

    def __getitem__(self, key: str) -> Value:
        return self.values[key]

    def whole(self, key: str) -> int:
        value = self.values[key]
        assert isinstance(value, int), f"{key} is a whole number"
        return value

    def real(self, key: str) -> float:
        value = self.values[key]
        assert isinstance(value, float), f"{key} is a number"
        return value

    def on(self, key: str) -> bool:
        return self.values[key] is True

    def layers(self, key: str) -> tuple[int, ...]:
        value = self.values[key]
        assert isinstance(value, tuple), f"{key} is a list"
        return value


def read(family: str, keys: Mapping[str, Key], experts_key: str, config: Mapping[str, Value]) -> Settings:
    """The charter's values with defaults filled in. Raises SettingError for the first that is wrong."""
    for key in config:
        if key == experts_key:
            raise SettingError(key, "follows from the experts the sites own; remove it")
        if key not in keys:
            raise SettingError(key, f"is not a key of {family} that a charter may set")
    values: dict[str, Value] = {}
    for key, kind in keys.items():
        if key in config:
            values[key] = kind.read(key, config[key])
        elif kind.default is None:
            raise SettingError(key, "is missing")
        else:
            values[key] = kind.default
    return Settings(values)


def _wrong(key: str, expected: str, value: object) -> SettingError:
    return SettingError(key, f"must be {expected}, not {value!r}")
