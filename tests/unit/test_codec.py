"""Codecs: bounds of the round trip, and everything a codec must refuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from commons.charter import Codec
from commons.codec import (
    CELL,
    FRAME,
    LARGEST,
    CodecError,
    add_frame,
    check_frame,
    decode,
    decode_frame,
    encode,
    encode_frame,
    encode_with_feedback,
    encoded_bytes,
    frame_bytes,
    frame_count,
)
from commons.codec.int8 import BLOCK

CODECS: tuple[Codec, ...] = ("fp32", "bf16", "int8")
SHAPES = [(), (0,), (3, 0, 2), (1,), (255,), (256,), (257,), (7, 11, 5), (1024 * BLOCK + 3,)]

finite = st.floats(-LARGEST, LARGEST, width=32)
tensors = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=20), elements=finite
)


def allowed_error(codec: Codec, array: NDArray[np.float32]) -> NDArray[np.float64]:
    """The promise of `encode`, element by element."""
    flat = np.abs(array.reshape(-1).astype(np.float64))
    match codec:
        case "fp32":
            return np.zeros(flat.size)
        case "bf16":
            return np.maximum(flat * 2.0**-8, 2.0**-134)
        case "int8":
            padded = np.zeros(-(-flat.size // BLOCK) * BLOCK)
            padded[: flat.size] = flat
            return np.repeat(padded.reshape(-1, BLOCK).max(axis=1), BLOCK)[: flat.size] / 253 + 2.0**-119


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=150, deadline=None)
@given(array=tensors)
def test_the_error_of_a_round_trip_stays_within_its_promise(codec: Codec, array: NDArray[np.float32]) -> None:
    data = encode(codec, array)
    back = decode(codec, data, array.shape)
    assert len(data) == encoded_bytes(codec, array.shape)
    assert back.dtype == np.float32 and back.shape == array.shape and back.flags.writeable
    error = np.abs(back.astype(np.float64) - array.astype(np.float64)).reshape(-1)
    assert np.all(error <= allowed_error(codec, array))


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=60, deadline=None)
@given(array=tensors)
def test_what_was_decoded_encodes_to_the_same_bytes(codec: Codec, array: NDArray[np.float32]) -> None:
    data = encode(codec, array)
    assert encode(codec, decode(codec, data, array.shape)) == data


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_comes_back(codec: Codec, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(7).standard_normal(shape), np.float32)
    back = decode(codec, encode(codec, array), shape)
    assert back.shape == shape
    assert np.all(np.abs(back - array).reshape(-1) <= allowed_error(codec, array))


@pytest.mark.parametrize("codec", CODECS)
def test_strides_do_not_matter(codec: Codec) -> None:
    array = np.random.default_rng(1).standard_normal((40, 30)).astype(np.float32)
    for view in (array.T, array[::2, ::3], array[::-1]):
        assert not view.flags.c_contiguous
        assert encode(codec, view) == encode(codec, view.copy())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32(3.4e38)])
def test_a_value_that_is_not_finite_or_rounds_to_infinity_is_refused(codec: Codec, value: float) -> None:
    array = np.zeros(1000, np.float32)
    array[777] = value
    with pytest.raises(CodecError, match="cannot encode"):
        encode(codec, array)


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        ("int8", np.array([0], "<f4").tobytes() + b"\x00\x01"),
        ("int8", np.array([1e-40], "<f4").tobytes() + b"\x00\x01"),
        ("int8", np.array([0.1], "<f4").tobytes() + b"\x00\x01"),
        ("int8", np.array([-0.0], "<f4").tobytes() + b"\x00\x00"),
        ("fp32", np.array([0, np.nan], "<f4").tobytes()),
        ("fp32", np.array([np.inf, 0], "<f4").tobytes()),
        ("bf16", np.array([0x7F80, 0], "<u2").tobytes()),
        ("bf16", np.array([0, 0xFFC0], "<u2").tobytes()),
        ("int8", np.array([np.nan], "<f4").tobytes() + b"\x01\x01"),
        ("int8", np.array([np.inf], "<f4").tobytes() + b"\x00\x00"),
        ("int8", np.array([3e38], "<f4").tobytes() + b"\x7f\x7f"),
        ("int8", np.array([-1], "<f4").tobytes() + b"\x01\x01"),
        ("int8", np.array([1], "<f4").tobytes() + b"\x80\x01"),
    ],
)
def test_bytes_that_no_encoder_writes_are_refused(codec: Codec, data: bytes) -> None:
    with pytest.raises(CodecError, match="refused"):
        decode(codec, data, (2,))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_length_is_refused_and_both_lengths_are_named(codec: Codec, change: int) -> None:
    data = encode(codec, np.ones((5, 3), np.float32))
    wrong = data[:-1] if change < 0 else data + b"\x00"
    with pytest.raises(CodecError, match=rf"is {len(data)} bytes, got {len(wrong)}"):
        decode(codec, wrong, (5, 3))


def test_another_dtype_is_refused() -> None:
    with pytest.raises(CodecError, match="float32, not float64"):
        encode("fp32", np.zeros(2))  # type: ignore[arg-type]


def test_bf16_rounds_to_nearest_even() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF], np.uint32)
    halves = np.frombuffer(encode("bf16", bits.view(np.float32)), "<u2")
    assert [hex(h) for h in halves] == ["0x3f80", "0x3f82", "0x3f81", "0x3f80"]


def test_encodings_are_these_very_bytes() -> None:
    array = np.array([1.0, -2.0, 0.5], np.float32)
    assert encode("fp32", array).hex() == "0000803f000000c00000003f"
    assert encode("bf16", array).hex() == "803f00c0003f"
    assert encode("int8", array).hex() == "0002813c" + "408120"


EDGES = [1, FRAME - 1, FRAME, FRAME + 1]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", EDGES)
def test_a_tensor_is_its_frames_and_each_stands_alone(codec: Codec, size: int) -> None:
    array = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    data, position = encode(codec, array), 0
    buffer, total, scratch = (
        np.empty(FRAME, np.float32),
        np.ones(size, np.float32),
        np.empty(CELL, np.float32),
    )
    expected = total + np.float32(0.3) * decode(codec, data, (size,))
    for first in range(0, size, FRAME):
        part = array[first : first + FRAME]
        frame = data[position : position + frame_bytes(codec, part.size)]
        assert frame == encode_frame(codec, part)
        back = decode_frame(codec, frame, part.size, buffer)
        assert np.shares_memory(back, buffer) and np.array_equal(back, decode_frame(codec, frame, part.size))
        assert check_frame(codec, frame, part.size) == pytest.approx(
            float(np.sum(back.astype(np.float64) ** 2)), rel=1e-5
        )
        add_frame(codec, frame, part.size, 0.3, total[first:], scratch)
        position += len(frame)
    assert position == len(data)
    assert frame_count(size) == -(-size // FRAME)
    assert np.array_equal(total, expected)


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=60, deadline=None)
@given(array=tensors)
def test_a_frame_is_checked_as_it_is_decoded(codec: Codec, array: NDArray[np.float32]) -> None:
    flat = array.reshape(-1)
    data = encode_frame(codec, flat)
    back = decode_frame(codec, data, flat.size).astype(np.float64)
    assert check_frame(codec, data, flat.size) == pytest.approx(float(np.sum(back**2)), rel=1e-5, abs=0)


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_decoded_and_what_is_left_over_is_what_was_given(codec: Codec) -> None:
    random = np.random.default_rng(3)
    given, decoded, residual = np.zeros(700), np.zeros(700), None
    for _ in range(20):
        values = random.standard_normal((7, 100)).astype(np.float32)
        data, residual = encode_with_feedback(codec, values, residual)
        given += values.reshape(-1)
        decoded += decode(codec, data, (700,))
    assert np.max(np.abs(decoded + residual - given)) < 1e-5
