"""Fixed point: bounds of the rounding, nothing lost, and sums that cannot wrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from commons.codec import CELL, FRAME, CodecError
from commons.masking import FixedPoint, add_words, to_bytes
from commons.privacy.terms import SecAgg

Array = NDArray[np.float32]

powers = st.integers(-20, 19).map(lambda n: 2.0**n)
clips = st.floats(1e-6, 1e6) | powers
bits = st.integers(8, 24)
vectors = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**21), 2.0**21, width=32))


def quantised(
    fixed: FixedPoint, values: Array, residual: Array | None = None
) -> tuple[NDArray[np.uint32], Array]:
    words, left = (
        np.empty(values.size, np.uint32),
        np.zeros_like(values) if residual is None else residual.copy(),
    )
    fixed.quantise(values, left, words)
    return words, left


@settings(max_examples=200, deadline=None)
@given(clip=clips, fraction_bits=bits, values=vectors)
def test_a_word_is_off_by_half_a_step_and_the_rounding_of_fp32_within_the_clip(
    clip: float, fraction_bits: int, values: Array
) -> None:
    fixed = FixedPoint(clip, fraction_bits, 64)
    words, _ = quantised(fixed, values)
    steps = words.view(np.int32).astype(np.int64)
    assert np.all(np.abs(steps) <= fixed.largest)
    wide = values.astype(np.float64)
    off = np.abs(steps * fixed.step - np.clip(wide, -clip, clip))
    slack = 0.0 if math.frexp(clip)[0] == 0.5 else 2.0**-22
    assert np.all(off <= fixed.step / 2 + slack * np.minimum(np.abs(wide), clip))


@settings(max_examples=200, deadline=None)
@given(clip=clips, fraction_bits=bits, values=vectors)
def test_word_and_residual_together_are_the_value(clip: float, fraction_bits: int, values: Array) -> None:
    fixed = FixedPoint(clip, fraction_bits, 64)
    words, residual = quantised(fixed, values)
    whole = words.view(np.int32).astype(np.float64) * fixed.step + residual.astype(np.float64)
    assert np.all(np.abs(whole - values) <= np.abs(values) * 2.0**-23 + 1e-37)
    if math.frexp(clip)[0] == 0.5:
        inside = np.abs(values) <= clip
        assert np.array_equal(whole[inside], values[inside].astype(np.float64)), "to the last bit"


@settings(max_examples=100, deadline=None)
@given(sites=st.integers(3, 64), clip=clips, sign=st.sampled_from([-1, 1]))
def test_the_sum_of_a_whole_crowd_beyond_the_clip_does_not_wrap(sites: int, clip: float, sign: int) -> None:
    fraction_bits = 30 - sites.bit_length()
    fixed = FixedPoint(clip, fraction_bits, sites)
    words, residual = quantised(fixed, np.full(3, sign * clip * 10, np.float32))
    total = np.zeros(3, np.uint32)
    for _ in range(sites):
        add_words(total, to_bytes(words))
    assert np.all(total.view(np.int32) == sign * sites * fixed.largest)
    assert np.allclose(fixed.mean(total, sites), sign * clip, rtol=2.0**-22)
    assert np.allclose(residual, sign * clip * 9, rtol=2.0**-20)


@settings(max_examples=100, deadline=None)
@given(sites=st.integers(1, 1024), fraction_bits=st.integers(0, 30))
def test_a_scale_is_taken_exactly_when_all_sites_have_head_room(sites: int, fraction_bits: int) -> None:
    if sites * 2**fraction_bits < 2**31:
        assert FixedPoint(1.0, fraction_bits, sites).largest * sites < 2**31
    else:
        with pytest.raises(ValueError, match="no head-room"):
            FixedPoint(1.0, fraction_bits, sites)


@pytest.mark.parametrize(
    ("clip", "fraction_bits", "sites", "words"),
    [
        (1.0, 30, 2, "no head-room"),
        (0.0, 10, 3, "clip is 0.0"),
        (-1.0, 10, 3, "clip is -1.0"),
        (math.inf, 10, 3, "clip is inf"),
        (math.nan, 10, 3, "clip is nan"),
        (1.0, 10, 0, "0 sites"),
        (1.0, 31, 1, "31 fraction bits"),
        (1.0, -1, 3, "-1 fraction bits"),
    ],
)
def test_a_scale_that_cannot_hold_the_sum_is_none(
    clip: float, fraction_bits: int, sites: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        FixedPoint(clip, fraction_bits, sites)


def test_the_scale_is_the_charters() -> None:
    assert FixedPoint.of(SecAgg(clip=0.5, fraction_bits=20), 7) == FixedPoint(0.5, 20, 7)


def test_no_mean_is_taken_of_more_sites_than_there_is_head_room_for() -> None:
    for sites in (0, 4):
        with pytest.raises(AssertionError):
            FixedPoint(1.0, 8, 3).mean(np.zeros(3, np.uint32), sites)


def test_what_is_left_over_reaches_the_sum_in_the_end() -> None:
    """Error feedback: over many rounds nothing that was clipped or rounded off is lost."""
    fixed = FixedPoint(0.5, 2, 3)
    values = np.array([0.9, 0.01, -0.06, 0.3], np.float32)
    residual, sent = np.zeros(4, np.float32), np.zeros(4)
    for number in range(40):
        words, residual = quantised(fixed, values if number < 10 else np.zeros(4, np.float32), residual)
        sent += words.view(np.int32) * fixed.step
    assert np.all(np.abs(sent - 10 * values.astype(np.float64)) <= fixed.step / 2 + 1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, CELL + 3])
def test_values_that_are_not_finite_are_refused(wrong: float, where: int) -> None:
    values = np.zeros(CELL + 9, np.float32)
    values[where] = wrong
    with pytest.raises(CodecError, match="cannot mask"):
        quantised(FixedPoint(1.0, 24, 3), values)


def test_a_frame_of_another_length_is_refused() -> None:
    total = np.zeros(5, np.uint32)
    for data in (b"", bytes(19), bytes(24)):
        with pytest.raises(CodecError, match="is 20 bytes"):
            add_words(total, data)


def test_blocks_and_whole_arrays_give_the_same_bits() -> None:
    draw = np.random.Generator(np.random.PCG64(4))
    values = draw.normal(0, 0.4, FRAME + 11).astype(np.float32)
    fixed = FixedPoint(1.0, 24, 5)
    words, residual = quantised(fixed, values)
    for start, stop in ((0, 1), (CELL - 1, CELL + 1), (FRAME, FRAME + 11)):
        part, left = quantised(fixed, values[start:stop])
        assert np.array_equal(part, words[start:stop]) and np.array_equal(left, residual[start:stop])
    out = np.zeros(FRAME + 20, np.float32)
    assert np.array_equal(fixed.mean(words, 3), fixed.mean(words, 3, out)) and not out[FRAME + 11 :].any()
