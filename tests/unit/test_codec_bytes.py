"""The bytes of the codecs: what they are, and which of them no encoder writes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from commons.codec import (
    FRAME,
    LARGEST,
    CodecError,
    add_frame,
    check_frame,
    decode_frame,
    encode_frame,
    frame_bytes,
)
from commons.codec.fp8 import VALUES
from commons.codec.top_k import CHUNK, KEPT
from commons.learning import Codec
from tests.support import fuzz_codecs

Floats = NDArray[np.float32]


def floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def fp32(value: float) -> bytes:
    return np.array([value], "<f4").tobytes()


def bf16(value: float) -> bytes:
    return fp32(value)[2:]


def test_encodings_are_these_very_bytes() -> None:
    values = floats(1.0, -2.0, 0.5)
    assert {c: encode_frame(c, values).hex() for c in ("fp32", "bf16", "int8", "int4", "fp8", "top_k")} == {
        "fp32": "0000803f000000c00000003f",
        "bf16": "803f00c0003f",
        # 2/127 cut to 16 bits; 64, -127, 32
        "int8": "0002813c" + "408120",
        # 2/7 as bf16; steps 4, -7, 2, none, each plus 8
        "int4": "923e" + "1c8a",
        # 2/448; 224, -448, 112
        "fp8": "0049923b" + "76fe6e",
        # lo 0.75, the mean of 1 and 0.5; hi 2; indices 0 1 2; +lo -hi +lo
        "top_k": "403f0040" + "001000" + "020000" + "0c",
    }


def test_bf16_rounds_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], np.uint32)
    halves = np.frombuffer(encode_frame("bf16", bits.view(np.float32)), "<u2")
    assert [hex(h) for h in halves] == ["0x3f80", "0x3f82", "0x3f81", "0x3f80"]


def test_fp8_is_e4m3() -> None:
    assert (VALUES[0x01], VALUES[0x07], VALUES[0x08], VALUES[0x38], VALUES[0x7E]) == (
        2.0**-9,
        7 * 2.0**-9,
        2.0**-6,
        1.0,
        448.0,
    )
    assert np.array_equal(VALUES[:0x7F] * -1, VALUES[0x80:0xFF])


def test_fp8_rounds_every_number_to_the_nearest_and_ties_to_even() -> None:
    """448 makes the scale 1, so the values are rounded as they are."""
    positive = VALUES[:0x7F]
    middles = (positive[:-1] + positive[1:]) / 2
    for sign in (1, -1):
        for shift in (0, 1, -1):
            values = np.copysign(
                np.nextafter(middles, floats(shift * np.inf), dtype=np.float32) if shift else middles, sign
            )
            for at in range(0, values.size, 255):
                part = values[at : at + 255]
                codes = np.frombuffer(encode_frame("fp8", np.append(floats(448), part))[4:], np.uint8)[1:]
                lower = np.arange(at, at + part.size)
                expected = lower + (shift > 0) + (0 if shift else lower % 2)
                assert np.array_equal(codes & 0x7F, expected)
                assert np.array_equal(codes >> 7, np.where(expected > 0, sign < 0, 0))
    with_scale = encode_frame("fp8", np.append(floats(448), positive[::-1]))
    assert list(with_scale[5:]) == list(range(0x7E, -1, -1))


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([65, 100, 300, 4095, 4096, 9000]),
    st.sampled_from([0, 5, 60, 64, 1000]),
)
@settings(max_examples=40, deadline=None)
def test_top_k_sends_the_largest_and_of_equals_the_first(seed: int, size: int, present: int) -> None:
    random = np.random.default_rng(seed)
    values = np.zeros(size, np.float32)
    where = random.choice(size, min(size, present) or size, replace=False)
    values[where] = random.integers(-40, 40, where.size)
    back = decode_frame("top_k", encode_frame("top_k", values), size)
    for at in range(0, size, CHUNK):
        chunk, sent = values[at : at + CHUNK], back[at : at + CHUNK]
        kept = np.argsort(-np.abs(chunk), kind="stable")[: min(KEPT, chunk.size)]
        kept = kept[chunk[kept] != 0]
        assert np.array_equal(np.flatnonzero(sent), np.sort(kept))
        assert np.array_equal(np.sign(sent[kept]), np.sign(chunk[kept]))
        assert np.unique(np.abs(sent[kept])).size <= 2
        assert np.abs(sent).sum() == pytest.approx(np.abs(chunk[kept]).sum(), rel=2**-7), "levels are means"


def test_top_k_finds_the_largest_where_they_crowd() -> None:
    values = np.linspace(0.1, 0.2, CHUNK, dtype=np.float32)
    values[5::256] = 9
    values[:200] = np.linspace(1, 2, 200)
    back = decode_frame("top_k", encode_frame("top_k", values), CHUNK)
    expected = np.argsort(-values, kind="stable")[:KEPT]
    assert np.array_equal(np.flatnonzero(back), np.sort(expected))


TOP_K = encode_frame("top_k", np.concatenate([np.arange(1, 65), np.zeros(10)]).astype(np.float32))
"""One chunk of 74: 64 indices 0..63, levels 16.5 and 48.5."""


def top_k(low: float, high: float, indices: str, values: str) -> bytes:
    return bf16(low) + bf16(high) + bytes.fromhex(indices) + bytes.fromhex(values)


@pytest.mark.parametrize(
    ("codec", "data", "count", "why"),
    [
        ("fp32", np.array([0, np.nan], "<f4").tobytes(), 2, "NaN"),
        ("fp32", np.array([np.inf, 0], "<f4").tobytes(), 2, "infinity"),
        ("fp32", np.array([0, 3.4e38], "<f4").tobytes(), 2, "nearly so"),
        ("bf16", np.array([0x7F80, 0], "<u2").tobytes(), 2, "NaN or infinity"),
        ("bf16", np.array([0, 0xFFC0], "<u2").tobytes(), 2, "NaN or infinity"),
        ("int8", fp32(np.nan) + b"\x01\x01", 2, "scale"),
        ("int8", fp32(np.inf) + b"\x00\x00", 2, "scale"),
        ("int8", fp32(3e38) + b"\x7f\x7f", 2, "scale"),
        ("int8", fp32(-1) + b"\x01\x01", 2, "scale"),
        ("int8", fp32(-0.0) + b"\x00\x00", 2, "scale"),
        ("int8", fp32(1e-40) + b"\x00\x01", 2, "too small"),
        ("int8", fp32(2.0**-81) + b"\x00\x01", 2, "too small"),
        ("int8", fp32(0.1) + b"\x00\x01", 2, "too fine"),
        ("int8", fp32(1) + b"\x80\x01", 2, "step is -128"),
        ("int8", fp32(0) + b"\x00\x01", 2, "scale zero"),
        ("int8", fp32(0) + fp32(1) + b"\x00" * 255 + b"\x01\x01", 257, "scale zero"),
        ("int8", fp32(1) + fp32(0) + b"\x01" * 257, 257, "scale zero"),
        ("int4", bf16(np.nan) + b"\x99", 2, "scale"),
        ("int4", bf16(np.inf) + b"\x99", 2, "scale"),
        ("int4", bf16(-1) + b"\x99", 2, "scale"),
        ("int4", bf16(1e38) + b"\x99", 2, "scale"),
        ("int4", bf16(1e-30) + b"\x99", 2, "too small"),
        ("int4", bf16(1) + b"\x90", 2, "code is 0"),
        ("int4", bf16(1) + b"\x09", 2, "code is 0"),
        ("int4", bf16(1) + b"\x99", 1, "padded"),
        ("int4", bf16(0) + b"\x89", 2, "scale zero"),
        ("int4", bf16(1) + bf16(0) + b"\x99" * 33, 66, "scale zero"),
        ("fp8", fp32(np.nan) + b"\x01\x01", 2, "scale"),
        ("fp8", fp32(1e38) + b"\x01\x01", 2, "scale"),
        ("fp8", fp32(1) + b"\x7f\x01", 2, "NaN"),
        ("fp8", fp32(1) + b"\x01\xff", 2, "NaN"),
        ("fp8", fp32(1) + b"\x01\x80", 2, "negative zero"),
        ("fp8", fp32(0) + b"\x01\x00", 2, "scale zero"),
        ("top_k", top_k(2, 1, "001000", "04"), 2, "level"),
        ("top_k", top_k(-1, 1, "001000", "04"), 2, "level"),
        ("top_k", top_k(1, np.inf, "001000", "04"), 2, "level"),
        ("top_k", top_k(np.nan, np.nan, "001000", "04"), 2, "level"),
        ("top_k", top_k(1e-30, 1, "001000", "04"), 2, "level"),
        ("top_k", top_k(0, 1, "001000", "08"), 2, "negative zero"),
        ("top_k", top_k(1, 1, "001000", "04"), 2, "both levels are one"),
        ("top_k", top_k(1, 2, "000000", "04"), 2, "do not increase"),
        ("top_k", top_k(1, 2, "010000", "04"), 2, "do not increase"),
        ("top_k", top_k(1, 2, "002000", "04"), 2, "leave their chunk"),
        ("top_k", top_k(1, 2, "001000", "14"), 2, "values are padded"),
        ("top_k", top_k(1, 2, "001000", "01"), 1, "indices are padded"),
    ],
)  # fmt: skip
def test_bytes_that_no_encoder_writes_are_refused(codec: Codec, data: bytes, count: int, why: str) -> None:
    assert len(data) == frame_bytes(codec, count)
    total, scratch = np.zeros(count, np.float32), np.zeros(count, np.float32)
    calls: tuple[Callable[[], object], ...] = (
        lambda: decode_frame(codec, data, count),
        lambda: check_frame(codec, data, count),
        lambda: add_frame(codec, data, count, 1.0, total, scratch),
    )
    for call in (
        calls[:2] if codec == "fp32" else calls
    ):  # fp32 values are added as they are: they were checked
        with pytest.raises(CodecError, match=rf"refused: .*{why}"):
            call()


def test_an_index_of_top_k_beyond_the_last_chunk_is_refused() -> None:
    wrong = bytearray(TOP_K)
    wrong[4 + 3 * 31 + 2] = 74 >> 4
    wrong[4 + 3 * 31 + 1] = wrong[4 + 3 * 31 + 1] & 15 | (74 & 15) << 4
    with pytest.raises(CodecError, match="leave their chunk"):
        decode_frame("top_k", wrong, 74)


@pytest.mark.parametrize("codec", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("at", [0, 70_000, FRAME - 1])
def test_a_wrong_byte_is_found_wherever_it_stands(codec: Codec, at: int) -> None:
    data = bytearray(encode_frame(codec, np.ones(FRAME, np.float32)))
    steps = len(data) - (FRAME // 2 if codec == "int4" else FRAME)
    data[steps + (at // 2 if codec == "int4" else at)] = {"int8": 0x80, "int4": 0x08, "fp8": 0x7F}[codec]
    with pytest.raises(CodecError, match="refused"):
        check_frame(codec, data, FRAME)


def test_what_is_too_small_for_a_scale_is_sent_as_zero() -> None:
    for codec in ("int8", "int4", "fp8", "top_k"):
        data = encode_frame(codec, np.full(300, -(2.0**-100), np.float32))
        assert not decode_frame(codec, data, 300).tobytes().strip(b"\0"), codec


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4", "fp8", "top_k"])
def test_the_largest_value_of_all_can_be_sent(codec: Codec) -> None:
    values = floats(LARGEST, -LARGEST, 1.0)
    back = decode_frame(codec, encode_frame(codec, values), 3)
    assert np.all(np.abs(back[:2]) >= LARGEST * 0.99) and np.all(np.abs(back) <= LARGEST)
    assert check_frame(codec, encode_frame(codec, values), 3) == pytest.approx(
        np.sum(back.astype(float) ** 2), rel=1e-5
    )


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=600))
def test_no_bytes_do_anything_but_decode_or_be_refused(data: bytes) -> None:
    fuzz_codecs.one(data)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
@example(12651)
def test_no_damage_to_a_frame_does_anything_but_decode_or_be_refused(seed: int) -> None:
    fuzz_codecs.one_damaged(seed)
