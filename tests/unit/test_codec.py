"""Codecs: bounds of the round trip, frames, and what error feedback leaves over."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

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
from commons.codec.top_k import CHUNK, KEPT
from commons.learning import Codec

Floats = NDArray[np.float32]
CODECS: tuple[Codec, ...] = get_args(Codec)
SHAPES = [
    (),
    (0,),
    (3, 0, 2),
    (1,),
    (63,),
    (64,),
    (65,),
    (255,),
    (256,),
    (257,),
    (7, 11, 5),
    (CELL + 3,),
    (4097,),
]
EDGES = [1, FRAME - 1, FRAME, FRAME + 1]

wild = st.one_of(
    st.floats(-LARGEST, LARGEST, width=32),
    st.floats(-1, 1, width=32),
    st.sampled_from([0.0, -0.0, LARGEST, -LARGEST, 2.0**-149, -(2.0**-126), 2.0**-80, 2.0**-81, -1.0, 1.0]),
)
alike = st.floats(0.5, 2.0, width=32)
shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=20)
tensors = st.one_of(arrays.arrays(np.float32, shapes, elements=values) for values in (wild, alike))


def allowed_error(codec: Codec, array: Floats) -> NDArray[np.float64]:
    """The promise of the codec's module, element by element, for a tensor of one frame."""
    flat = np.abs(array.reshape(-1).astype(np.float64))
    match codec:
        case "fp32":
            return np.zeros(flat.size)
        case "bf16":
            return np.maximum(flat * 2.0**-8, 2.0**-134)
        case "int8":
            return largest_of_block(flat, 256) / 253 + 2.0**-73
        case "int4":
            return largest_of_block(flat, 64) / 13.99 + 2.0**-77
        case "fp8":
            return np.maximum(flat / 16, largest_of_block(flat, 256) / 458_000) + 2.0**-71
        case "top_k":
            return np.concatenate(
                [of_chunk(flat[at : at + CHUNK]) for at in range(0, flat.size, CHUNK)] or [flat]
            )


def largest_of_block(flat: NDArray[np.float64], block: int) -> NDArray[np.float64]:
    padded = np.zeros(-(-flat.size // block) * block)
    padded[: flat.size] = flat
    return np.repeat(padded.reshape(-1, block).max(axis=1), block)[: flat.size]


def of_chunk(chunk: NDArray[np.float64]) -> NDArray[np.float64]:
    kept = min(KEPT, chunk.size)
    sent = np.argsort(-chunk, kind="stable")[:kept]
    lowest, highest = chunk[sent].min(), chunk[sent].max()
    lowest = lowest if lowest >= 2.0**-80 else 0.0
    error = np.full(chunk.size, lowest)
    error[sent] = (highest - lowest) / (2 if lowest else 1) + chunk[sent] / 250
    return error + 2.0**-80


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=150, deadline=None)
@given(array=tensors)
def test_the_error_of_a_round_trip_stays_within_its_promise(codec: Codec, array: Floats) -> None:
    data = encode(codec, array)
    back = decode(codec, data, array.shape)
    assert len(data) == encoded_bytes(codec, array.shape)
    assert back.dtype == np.float32 and back.shape == array.shape and back.flags.writeable
    error = np.abs(back.astype(np.float64) - array.astype(np.float64)).reshape(-1)
    assert np.all(error <= allowed_error(codec, array))


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=100, deadline=None)
@given(array=tensors)
def test_what_was_decoded_encodes_to_the_same_bytes(codec: Codec, array: Floats) -> None:
    data = encode(codec, array)
    assert encode(codec, decode(codec, data, array.shape)) == data


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_comes_back(codec: Codec, shape: tuple[int, ...]) -> None:
    """A scalar is one element; a tensor without elements is no bytes."""
    array = np.asarray(np.random.default_rng(7).standard_normal(shape), np.float32)
    data = encode(codec, array)
    back = decode(codec, data, shape)
    assert back.shape == shape
    assert np.all(np.abs(back - array).reshape(-1) <= allowed_error(codec, array))
    assert (data == b"") == (array.size == 0)


@pytest.mark.parametrize("codec", CODECS)
def test_strides_do_not_matter(codec: Codec) -> None:
    array = np.random.default_rng(1).standard_normal((140, 130)).astype(np.float32)
    for view in (array.T, array[::2, ::3], array[::-1]):
        assert not view.flags.c_contiguous
        assert encode(codec, view) == encode(codec, view.copy())
    assert encode_frame(codec, array[:, 3]) == encode_frame(codec, array[:, 3].copy())


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
        assert encode_frame(codec, back) == frame
        add_frame(codec, frame, part.size, 0.3, total[first:], scratch)
        position += len(frame)
    assert position == len(data)
    assert frame_count(size) == -(-size // FRAME)
    assert np.array_equal(total, expected)


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=100, deadline=None)
@given(array=tensors, weight=st.sampled_from([1.0, 0.3, -2.0, 0.0]))
def test_checking_and_adding_a_frame_is_decoding_it(codec: Codec, array: Floats, weight: float) -> None:
    flat = array.reshape(-1)
    data = encode_frame(codec, flat)
    back = decode_frame(codec, data, flat.size)
    norm = float(np.sum(back.astype(np.float64) ** 2))
    assert check_frame(codec, data, flat.size) == pytest.approx(norm, rel=1e-5, abs=0)
    total = np.linspace(-1, 1, flat.size + 3, dtype=np.float32)
    total[::2] = -0.0
    before = total.copy()
    with np.errstate(over="ignore"):
        expected = total[: flat.size] + np.float32(weight) * back
        add_frame(codec, data, flat.size, weight, total, np.empty(max(1, flat.size), np.float32))
    assert total[: flat.size].tobytes() == expected.tobytes(), "to the last bit, the sign of a zero too"
    assert total[flat.size :].tobytes() == before[flat.size :].tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_a_frame_may_lie_anywhere_in_a_payload(codec: Codec) -> None:
    values = np.random.default_rng(2).standard_normal(5001).astype(np.float32)
    data = encode_frame(codec, values)
    moved = memoryview(bytearray(b"\xff" + data + b"\xff"))[1:-1]
    assert np.array_equal(decode_frame(codec, moved, 5001), decode_frame(codec, data, 5001))
    assert check_frame(codec, moved, 5001) == check_frame(codec, data, 5001)


@pytest.mark.parametrize("codec", CODECS)
def test_a_tensor_of_zeros_comes_back_as_zeros(codec: Codec) -> None:
    values = np.zeros(FRAME, np.float32)
    data = encode_frame(codec, values)
    assert not decode_frame(codec, data, FRAME).any()
    assert check_frame(codec, data, FRAME) == 0


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.floats(0.0078125, 100, width=32), min_size=1, max_size=300))
def test_more_is_never_sent_than_there_is_room_for(codec: Codec, sizes: list[float]) -> None:
    """No rounding leads beyond LARGEST: what was decoded can be encoded."""
    values = (np.array(sizes) / max(sizes) * LARGEST).astype(np.float32)
    back = decode(codec, encode(codec, values), values.shape)
    assert np.abs(back).max() <= LARGEST


@pytest.mark.parametrize("codec", [c for c in CODECS if c != "top_k"])
def test_what_was_decoded_and_what_is_left_over_is_what_was_given(codec: Codec) -> None:
    random = np.random.default_rng(3)
    given, decoded, residual = np.zeros(700), np.zeros(700), None
    for _ in range(20):
        values = random.standard_normal((7, 100)).astype(np.float32)
        data, residual = encode_with_feedback(codec, values, residual)
        given += values.reshape(-1)
        decoded += decode(codec, data, (700,))
    assert np.max(np.abs(decoded + residual - given)) < 1e-5
    assert codec != "fp32" or not residual.any()


def test_what_top_k_leaves_over_decays() -> None:
    random = np.random.default_rng(3)
    residual = random.standard_normal(FRAME + 5000).astype(np.float32)
    values = random.standard_normal(FRAME + 5000).astype(np.float32)
    before = residual.copy()
    data, left = encode_with_feedback("top_k", values, residual)
    wanted = values + np.float32(0.95) * residual
    assert data == encode("top_k", wanted)
    assert np.array_equal(left, wanted - decode("top_k", data, wanted.shape))
    assert np.array_equal(residual, before)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32(3.4e38)])
def test_a_value_that_is_not_finite_or_rounds_to_infinity_is_refused(codec: Codec, value: float) -> None:
    array = np.zeros(100_000, np.float32)
    array[77_777] = value
    for part in (array, array[77_777:77_778], array[77_000:78_000]):
        with pytest.raises(CodecError, match="cannot encode"):
            encode(codec, part)


@pytest.mark.parametrize("codec", CODECS)
def test_another_dtype_is_refused(codec: Codec) -> None:
    for call in (encode, encode_frame):
        with pytest.raises(CodecError, match="float32, not float64"):
            call(codec, np.zeros(2))  # type: ignore[arg-type]


def test_a_frame_is_one_row_of_limited_length() -> None:
    for values in (np.zeros((2, 3), np.float32), np.zeros(FRAME + 1, np.float32)):
        with pytest.raises(CodecError, match="at most 262144 values in one row"):
            encode_frame("int8", values)
    for count in (-1, FRAME + 1):
        with pytest.raises(ValueError, match="at most 262144 elements"):
            frame_bytes("int8", count)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_length_is_refused_and_both_lengths_are_named(codec: Codec, change: int) -> None:
    data = encode(codec, np.ones((5, 3), np.float32))
    wrong = data[:-1] if change < 0 else data + b"\x00"
    for call in (lambda: decode(codec, wrong, (5, 3)), lambda: check_frame(codec, wrong, 15)):
        with pytest.raises(CodecError, match=rf"is {len(data)} bytes, got {len(wrong)}"):
            call()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "buffer",
    [
        np.zeros(299, np.float32),
        np.zeros(300),
        np.zeros((300, 2), np.float32),
        np.zeros(600, np.float32)[::2],
    ],
    ids=["short", "float64", "2-D", "strided"],
)
def test_a_buffer_without_room_is_an_error_and_no_silent_half(codec: Codec, buffer: Floats) -> None:
    data = encode_frame(codec, np.ones(300, np.float32))
    fine = np.zeros(300, np.float32)
    with pytest.raises(ValueError, match="300 elements need"):
        decode_frame(codec, data, 300, buffer)
    for total, scratch in ((buffer, fine), (fine, buffer)):
        with pytest.raises(ValueError, match="300 elements need"):
            add_frame(codec, data, 300, 1.0, total, scratch)


def test_sizes_are_these() -> None:
    assert {codec: frame_bytes(codec, FRAME) for codec in CODECS} == {
        "fp32": 1_048_576,
        "bf16": 524_288,
        "int8": 266_240,
        "int4": 139_264,
        "fp8": 266_240,
        "top_k": 7_424,
    }
    assert {codec: frame_bytes(codec, 1) for codec in CODECS} == {
        "fp32": 4,
        "bf16": 2,
        "int8": 5,
        "int4": 3,
        "fp8": 5,
        "top_k": 8,
    }
