"""Masks: the cipher's own bytes, uniform, and never the same twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from commons.codec import FRAME
from commons.masking import Attempt, Masker, Step, Stream, Unmasker
from commons.masking.dealing import streams
from commons.masking.derive import Secrets, seal_shares
from commons.masking.roster import Deals, Roster
from commons.names import Digest
from commons.privacy.terms import SecAgg
from tests.support.masked_rounds import ATTEMPT, Crowd, good, name, secret_of, upto

Words = NDArray[np.uint32]
KEY = bytes(range(32))


def keystream(key: bytes, count: int, slice_index: int, frame: int) -> Words:
    """AES-256 of the counters one by one: the definition of CTR, by another mode of the cipher."""
    start = slice_index << 96 | frame << 64
    counters = b"".join((start + n).to_bytes(16, "big") for n in range(-(-4 * count // 16)))
    made = Cipher(AES(key), ECB()).encryptor().update(counters)
    return np.frombuffer(made, "<u4")[:count].astype(np.uint32)


@settings(max_examples=40, deadline=None)
@given(
    key=st.binary(min_size=32, max_size=32),
    count=st.integers(1, 300),
    slice_index=st.integers(0, 2**32 - 1),
    frame=st.integers(0, 2**32 - 1),
    added=st.booleans(),
)
def test_a_mask_is_the_keystream_of_its_slice_and_frame(
    key: bytes, count: int, slice_index: int, frame: int, added: bool
) -> None:
    words = np.full(count, 7, np.uint32)
    Masker([Stream(key, added)]).frame(words, slice_index, frame)
    stream = keystream(key, count, slice_index, frame)
    assert np.array_equal(words, 7 + stream if added else 7 - stream)


@pytest.mark.parametrize("count", [1, 65_535, 65_536, 65_537, FRAME])
def test_a_whole_frame_is_one_keystream(count: int) -> None:
    words = np.zeros(count, np.uint32)
    Masker([Stream(KEY, True)]).frame(words, 3, 9)
    assert np.array_equal(words, keystream(KEY, count, 3, 9))


def test_what_one_adds_the_other_takes_away_frame_by_frame_in_any_order() -> None:
    masker, unmasker = Masker([Stream(KEY, True)]), Unmasker([Stream(KEY, False)])
    places = [(s, f) for s in range(3) for f in range(3)]
    frames = {place: np.arange(100, dtype=np.uint32) for place in places}
    for place in places:
        masker.frame(frames[place], *place)
    for place in reversed(places):
        unmasker.frame(frames[place], *place)
        assert np.array_equal(frames[place], np.arange(100))


def test_no_two_frames_of_one_key_share_a_cipher_block() -> None:
    """A frame takes 2^16 of the 2^64 counters that are its own."""
    words = np.zeros((2, 2, FRAME), np.uint32)
    masker = Masker([Stream(KEY, True)])
    for slice_index in range(2):
        for frame in range(2):
            masker.frame(words[slice_index, frame], slice_index, frame)
    blocks = words.reshape(-1, 4)
    assert len(np.unique(blocks, axis=0)) == len(blocks)


@pytest.mark.parametrize(
    ("count", "slice_index", "frame"), [(0, 0, 0), (FRAME + 1, 0, 0), (1, 2**32, 0), (1, 0, -1)]
)
def test_a_frame_that_is_none_is_our_mistake(count: int, slice_index: int, frame: int) -> None:
    with pytest.raises(AssertionError):
        Masker([Stream(KEY, True)]).frame(np.zeros(count, np.uint32), slice_index, frame)


def test_a_key_is_not_shown_by_accident() -> None:
    assert KEY.hex() not in repr(Stream(KEY, True)) and str(KEY) not in repr(Stream(KEY, True))


# masked words


def masked_zeros(attempt: Attempt, sites: Sequence[str], count: int = 4096) -> dict[str, Words]:
    """What sites whose update is zero everywhere send: their masks, bare."""
    crowd = upto(Step.MASKED, Crowd(attempt=attempt))
    found = {}
    for site in sites:
        found[site] = np.zeros(count, np.uint32)
        good(crowd.sites[site].masker(crowd.dealt)).frame(found[site], 0, 0)
    return found


CHI_SQUARE = (169.9, 363.0)
"""Between these lie all but 2 in 100,000 of the chi-squares of 256 uniform bins."""


def chi_square(data: NDArray[np.uint8]) -> float:
    counts = np.bincount(data, minlength=256)
    expected = data.size / 256
    return float(np.sum((counts - expected) ** 2) / expected)


def test_masked_words_are_uniform_whatever_is_masked() -> None:
    crowd = upto(Step.MASKED)
    for site in crowd.names:
        masker = good(crowd.sites[site].masker(crowd.dealt))
        for value in (0, 1, 2**32 - 1):
            words = np.full(50_000, value, np.uint32)
            masker.frame(words, 1, 0)
            for byte in range(4):
                column = words.view(np.uint8).reshape(-1, 4)[:, byte]
                assert CHI_SQUARE[0] < chi_square(column) < CHI_SQUARE[1]


def test_the_chi_square_would_see_a_mask_that_is_not_uniform() -> None:
    """A mask that never emits one byte, and one drawn from a little too small a range."""
    draw = np.random.Generator(np.random.PCG64(1))
    assert chi_square(draw.integers(0, 255, 50_000).astype(np.uint8)) > CHI_SQUARE[1]
    small = draw.integers(0, 2**32 - 2**27, 50_000).astype(np.uint32).view(np.uint8).reshape(-1, 4)[:, 3]
    assert chi_square(small) > CHI_SQUARE[1]


def test_no_site_round_attempt_or_run_shares_keystream_with_another() -> None:
    attempts = (
        ATTEMPT,
        replace(ATTEMPT, round=4),
        replace(ATTEMPT, attempt=2),
        replace(ATTEMPT, run="run-2"),
        replace(ATTEMPT, consortium="other"),
        replace(ATTEMPT, charter="sha256:22"),
    )
    words = [w for attempt in attempts for w in masked_zeros(attempt, [name(1), name(2)]).values()]
    blocks = np.concatenate(words).reshape(-1, 4)
    assert len(np.unique(blocks, axis=0)) == len(blocks)
    assert len({key for attempt in attempts for key in keys_of(attempt)}) == 5 * len(attempts)


def keys_of(attempt: Attempt) -> list[bytes]:
    """The keys of the keystreams that site 1 uses."""
    crowd = upto(Step.MASKED, Crowd(attempt=attempt))
    roster = good(Roster.read(crowd.roster, attempt=attempt, sites=crowd.keys, terms=SecAgg()))
    deals = good(Deals.read(crowd.dealt, roster=roster, sites=crowd.keys))
    return [stream.key for stream in streams(Secrets(secret_of(name(1)), attempt, name(1)), deals)]


def test_nothing_that_is_drawn_for_one_roster_is_used_for_another() -> None:
    """A site that lost its memory may be shown a second roster: no polynomial and no cipher key serves twice."""
    one, other = Digest("sha256:" + "1" * 64), Digest("sha256:" + "2" * 64)
    own, peer = (Secrets(secret_of(name(n)), ATTEMPT, name(n)) for n in (1, 2))
    drawn = [
        c
        for roster in (one, other)
        for what in ("mask key", "seed")
        for c in own.coefficients(what, roster, 5)
    ]
    assert len(set(drawn)) == 20
    assert own.seed(one) != own.seed(other)
    sealed = [
        seal_shares(
            (1, 2),
            own=own.channel,
            peer=peer.channel.public_key().public_bytes_raw(),
            attempt=ATTEMPT,
            roster=roster,
            sender=sender,
            receiver=receiver,
        )
        for roster in (one, other)
        for sender, receiver in ((name(1), name(2)), (name(2), name(1)))
    ]
    assert len({data[:32] for data in sealed}) == 4
