"""Bytes, messages and documents gone wrong: by a bit, by a field, by a value that no honest writer would choose."""

from __future__ import annotations

import json
from contextlib import suppress
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    255,
    2**16,
    2**20 + 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
TEXTS = (
    "", "-", ".", "..", "/", "../../x", "\0", "\n", "a\nb", "\u202e", "\U0001f600" * 199, "é" * 300, "x" * 1001, "NaN", "inf",
    "1e999", "999999999999e300", "-1", "00", "9" * 19, "0x10", "sha256:", "sha256:" + "0" * 64, "sha256:" + "0" * 63 + "G",
)  # fmt: skip
FLOATS = (0.0, -0.0, -1.0, 1e-320, 1e308, -1e308, float("inf"), float("-inf"), float("nan"))
_WHOLE = {
    FieldDescriptor.TYPE_UINT32: 2**32 - 1,
    FieldDescriptor.TYPE_UINT64: 2**64 - 1,
}


def damaged(random: Random, data: bytes, *, most: int = 4) -> bytes:
    """A few bytes changed, dropped, doubled, put in or cut off; at times none."""
    out = bytearray(data)
    for _ in range(random.randrange(most)):
        at = random.randrange(len(out) + 1)
        length = random.choice((1, 1, 2, 4, 16, 64))
        match random.randrange(6):
            case 0:
                del out[at : at + length]
            case 1:
                out[at:at] = random.randbytes(length)
            case 2:
                out[at:at] = out[at : at + length]
            case 3:
                del out[at:]
            case 4 if at < len(out):
                out[at] ^= 1 << random.randrange(8)
            case _:
                out[at : at + 1] = bytes([random.choice(b'\0\n "-/09:[]{}\x7f\x80\xff')])
    return bytes(out)


def number(random: Random) -> int:
    return random.choice(NUMBERS) if random.random() < 0.8 else random.randrange(2**64)


def text(random: Random, like: str) -> str:
    """Sometimes the text damaged, else one that fits nowhere."""
    if random.random() < 0.5:
        return random.choice(TEXTS)
    return damaged(random, like.encode(errors="replace")).decode(errors="replace")


def message(random: Random, honest: Message) -> bytes:
    """A message as it is, with fields of other values, or damaged as bytes."""
    wrong = type(honest)()
    wrong.CopyFrom(honest)
    for of in wrong.DESCRIPTOR.fields:
        if random.random() >= 0.2:
            continue
        if of.containing_oneof and not wrong.HasField(of.name):
            continue
        if of.message_type and not of.is_repeated:
            inner = getattr(wrong, of.name)
            with suppress(DecodeError):
                inner.CopyFrom(type(inner).FromString(message(random, inner)))
        elif of.is_repeated:
            values = [text(random, one) for one in getattr(wrong, of.name)]
            del getattr(wrong, of.name)[:]
            getattr(wrong, of.name).extend(random.choices(values or [""], k=random.randrange(6)))
        else:
            setattr(wrong, of.name, _value(random, of, getattr(wrong, of.name)))
    data = wrong.SerializeToString()
    return damaged(random, data) if random.random() < 0.3 else data


def document(random: Random, value: Any) -> Any:
    """JSON with a value somewhere replaced, dropped, doubled or moved."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        key = random.choice(list(value))
        match random.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return value | {random.choice(TEXTS): value[key]}
            case _:
                return value | {key: document(random, value[key])}
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        match random.randrange(6):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[: at + 1] + value[at:]
            case 2:
                return value[::-1]
            case _:
                return [*value[:at], document(random, value[at]), *value[at + 1 :]]
    return _leaf(random, value)


def written(value: Any) -> bytes:
    """As `canonical_json` writes it, but whatever the value is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        errors="replace"
    )


def pieces(random: Random, data: bytes) -> list[bytes]:
    """Cut anywhere, in a few or in many."""
    if random.random() < 0.5:
        return [data]
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.choice((1, 2, 5, 90))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]


def _leaf(random: Random, value: Any) -> Any:
    match random.randrange(6):
        case 0 if isinstance(value, int):
            return value + random.choice((-1, 1, 2**63, 2**64))
        case 1:
            return number(random)
        case 2:
            return text(random, value if isinstance(value, str) else "")
        case 3:
            return random.choice((None, True, [], {}, [[]], 0.5, -1, 10**400))
        case 4:
            return [value] * (random.choice((0, 1, 2, 9, 300)) if isinstance(value, int | str) else 1)
        case _:
            return value


def _value(random: Random, of: FieldDescriptor, value: Any) -> Any:
    if of.type in _WHOLE:
        return number(random) & _WHOLE[of.type]
    match of.type:
        case FieldDescriptor.TYPE_STRING:
            return text(random, value)
        case FieldDescriptor.TYPE_BYTES:
            return damaged(random, value)
        case FieldDescriptor.TYPE_DOUBLE:
            return random.choice(FLOATS)
        case _:
            return value
