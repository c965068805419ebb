"""What leaves a site under noise: clipped exactly, noised as promised, the same again, and never two updates alike."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from commons.codec import FRAME, CodecError
from commons.privacy.terms import DP
from workers.noise import TAIL, Noise, Noising, Normal

Array = NDArray[np.float32]
NOISING = Noising(
    terms=DP(clip_norm=0.5, noise_multiplier=2.0), secret=b"s" * 32, consortium="hanse", run="run-1", round=1,
    charter="sha256:" + "c" * 64, site="alder",
)  # fmt: skip
QUIET = DP(clip_norm=0.5, noise_multiplier=0.01)


def drawn(count: int, slice_index: int = 0, frame: int = 0, key: bytes = b"k" * 32) -> NDArray[np.float64]:
    return Normal(key).frame(count, slice_index, frame).copy()


def ks_distance(values: NDArray[np.float64]) -> float:
    """Kolmogorov's distance to the normal distribution, times sqrt(n)."""
    wanted = np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in np.sort(values)])
    steps = np.arange(values.size + 1) / values.size
    return math.sqrt(values.size) * float(max(np.max(steps[1:] - wanted), np.max(wanted - steps[:-1])))


def test_the_noise_is_normal() -> None:
    values = drawn(FRAME)
    n = values.size
    assert abs(values.mean()) < 4 / math.sqrt(n)
    assert abs(values.std() - 1) < 4 / math.sqrt(2 * n)
    assert abs(np.mean(values**3)) < 4 * math.sqrt(15 / n)
    assert abs(np.mean(values**4) - 3) < 4 * math.sqrt(96 / n)
    assert ks_distance(values) < 1.95, "less likely than one in a thousand"
    for part in (values[: n // 2], values[n // 2 :], np.abs(values)[::2] * np.sign(values[::2])):
        assert ks_distance(part) < 1.95
    beyond = np.count_nonzero(np.abs(values) > 4)
    assert abs(beyond - n * 6.334e-5) < 4 * math.sqrt(n * 6.334e-5)


def test_neighbours_frames_slices_and_keys_have_nothing_in_common() -> None:
    values = drawn(FRAME)
    others = [
        drawn(FRAME, frame=1),
        drawn(FRAME, slice_index=1),
        drawn(FRAME, slice_index=1, frame=1),
        drawn(FRAME, key=b"l" * 32),
        np.roll(values, 1),
        np.roll(values, FRAME // 2),
        *(np.roll(values, 1 << shift) for shift in (13, 14, 15)),
    ]
    for other in others:
        for one, two in ((values, other), (values**2, other**2)):
            assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(FRAME)


def test_the_uniform_of_most_extreme_bits_gives_the_stated_tail_and_nothing_infinite() -> None:
    normal, into = Normal(b"k" * 32), np.empty(4)
    most = np.uint64(2**64 - 1)
    normal._turn(np.array([0, most, 0, most], np.uint64), into)
    assert np.all(np.isfinite(into)) and np.max(np.abs(into)) == pytest.approx(TAIL)
    assert math.erfc(TAIL / math.sqrt(2)) < 2.4e-21


@pytest.mark.parametrize("count", [1, 2, 3, 7, FRAME // 2, FRAME // 2 + 1, FRAME - 1, FRAME])
def test_a_frame_of_any_size_is_drawn_whole(count: int) -> None:
    values = drawn(count)
    assert values.shape == (count,) and len(np.unique(values)) == count
    assert np.array_equal(values, drawn(count)), "asked again, the same"


def update(size: int = 3 * FRAME + 5, length: float = 3.0) -> dict[str, Array]:
    values = np.random.default_rng(1).standard_normal(size)
    values *= length / np.linalg.norm(values)
    return {"trunk": values[: size - 5].astype(np.float32), "router": values[size - 5 :].astype(np.float32)}


def noised(made: Noise, of: dict[str, Array]) -> dict[str, Array]:
    return {
        name: np.concatenate(
            [
                made.frame(name, number, values[first : first + FRAME])
                for number, first in enumerate(range(0, values.size, FRAME))
            ]
        )
        for name, values in of.items()
    }


@pytest.mark.parametrize("length", [1e-3, 0.49999, 0.5, 0.50001, 3.0, 1e6])
def test_an_update_is_cut_to_the_norm_over_all_slices_and_never_beyond(length: float) -> None:
    of = update(length=length)
    made = NOISING.begin(of.items())
    assert made.norm == pytest.approx(length, rel=1e-6)
    whole = math.sqrt(math.fsum((float(v) * made.scale) ** 2 for values in of.values() for v in values))
    assert whole <= NOISING.terms.clip_norm
    assert whole == pytest.approx(min(length, 0.5), rel=1e-6), "and no shorter than it must be"
    assert (made.scale == 1.0) is (length < 0.5)


def test_what_leaves_is_the_clipped_update_and_noise_of_the_stated_deviation() -> None:
    of = update()
    made = NOISING.begin(of.items())
    sent = noised(made, of)
    rest = np.concatenate([sent[name].astype(np.float64) - of[name] * made.scale for name in of])
    assert abs(rest.std() / (2.0 * 0.5) - 1) < 4 / math.sqrt(2 * rest.size)
    assert abs(rest.mean()) < 4 / math.sqrt(rest.size)
    assert ks_distance(rest[:FRAME]) < 1.95
    quiet = replace(NOISING, terms=QUIET).begin(of.items())
    for name, values in noised(quiet, of).items():
        np.testing.assert_allclose(values, of[name] * quiet.scale, atol=0.01 * 0.5 * TAIL)


def test_no_value_tells_by_its_last_bits_what_was_summed() -> None:
    of = update()
    for values in noised(NOISING.begin(of.items()), of).values():
        assert np.array_equal(values, np.rint(values * 2.0**20) * 2.0**-20), "whole steps of the grid"


@pytest.mark.parametrize(
    "other",
    [
        lambda n: replace(n, secret=b"t" * 32),
        lambda n: replace(n, run="run-2"),
        lambda n: replace(n, round=2),
        lambda n: replace(n, consortium="other"),
        lambda n: replace(n, site="birch"),
        lambda n: replace(n, charter="sha256:" + "d" * 64),
    ],
)
def test_the_same_round_has_the_same_noise_and_every_other_has_its_own(
    other: Callable[[Noising], Noising],
) -> None:
    of = update()
    sent = noised(NOISING.begin(of.items()), of)
    again = noised(replace(NOISING).begin(of.items()), of)
    assert all(np.array_equal(sent[name], again[name]) for name in of)
    apart = noised(other(NOISING).begin(of.items()), of)
    assert np.mean(sent["trunk"] == apart["trunk"]) < 1e-4


def test_two_updates_that_differ_in_one_bit_never_have_the_same_noise() -> None:
    of = update(length=0.1)
    other = {name: values.copy() for name, values in of.items()}
    other["router"][-1] = np.nextafter(other["router"][-1], np.float32(1))
    one, two = (noised(NOISING.begin(made.items()), made) for made in (of, other))
    difference = one["trunk"].astype(np.float64) - two["trunk"]
    assert abs(difference.std() / (math.sqrt(2) * 2.0 * 0.5) - 1) < 0.01


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused_before_any_noise(wrong: float) -> None:
    of = update(size=100)
    of["router"][2] = wrong
    with pytest.raises(CodecError, match="update of site alder for round 1 has values that are not finite"):
        NOISING.begin(of.items())


def test_memory_does_not_grow_with_the_update() -> None:
    peaks = []
    for frames in (2, 8):
        values = np.full(frames * FRAME, 1e-3, np.float32)
        tracemalloc.start()
        made = NOISING.begin([("trunk", values)])
        for number in range(frames):
            made.frame("trunk", number, values[number * FRAME : (number + 1) * FRAME])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + FRAME, "a fraction of one more frame's values"
