"""Whole masked rounds in memory: the sum is found whoever is lost, and nobody who cheats learns or breaks more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from commons.codec import FRAME
from commons.errors import Code, Refusal
from commons.masking import (
    Bound,
    Deal,
    Reveal,
    RoundMasking,
    Step,
    Unmasker,
    Waiting,
    add_words,
    dealing,
    strength,
)
from commons.masking.attempt import AgreementNote, KeysNote, RevealNote, SharesNote, SurvivorsNote
from commons.masking.dealing import streams
from commons.masking.derive import Secrets, seal_shares
from commons.masking.roster import Deals, Roster
from commons.notes import Signer, digest, parse
from commons.privacy.terms import SecAgg
from tests.support.masked_rounds import (
    ATTEMPT,
    LOG,
    Crowd,
    good,
    later,
    name,
    secret_of,
    signer_of,
    update_of,
    upto,
)

MALLORY = Signer("coordinator", b"\x66" * 32)


def refused(answer: object, code: Code, words: str = "") -> Refusal:
    assert isinstance(answer, Refusal), f"expected {code}, got {answer!r}"
    assert answer.code == code and words in answer.message, str(answer)
    return answer


def list_of(crowd: Crowd, survivors: list[str], dropped: list[str], **changes: object) -> SurvivorsNote:
    assert crowd.coordinator.deals is not None
    values = {"of": crowd.attempt, "deals": crowd.coordinator.deals.digest, **changes}
    return SurvivorsNote(survivors=tuple(survivors), dropped=tuple(dropped), **values)  # type: ignore[arg-type]


# what an honest round gives


@pytest.mark.parametrize("count", [3, 4, 5, 7, 10])
def test_the_sum_of_all_is_found_to_the_last_bit(count: int) -> None:
    crowd = upto(Step.REVEAL, Crowd(count)).reveal()
    crowd.check_sum()


def test_the_mean_is_the_mean_of_the_updates_up_to_half_a_step() -> None:
    crowd = upto(Step.REVEAL).reveal()
    totals = crowd.total(good(crowd.coordinator.unmasker()))
    for number, total in enumerate(totals):
        mean = crowd.fixed_point.mean(total, len(crowd.masked))
        clipped = [np.clip(update_of(site, crowd.sizes)[number], -1, 1) for site in crowd.names]
        expected = np.mean(clipped, axis=0, dtype=np.float64)
        assert np.max(np.abs(mean - expected)) <= crowd.fixed_point.step / 2 + 2**-24


def test_frames_are_unmasked_one_by_one_in_any_order() -> None:
    crowd = upto(Step.REVEAL, Crowd(3, sizes=(2 * FRAME + 5,))).reveal()
    streams = good(crowd.coordinator.close_reveals())
    expected = crowd.plain_total(crowd.names)[0]
    for frame in (2, 0, 1):
        part = expected[frame * FRAME : (frame + 1) * FRAME]
        total = np.zeros(part.size, np.uint32)
        for site in reversed(crowd.names):
            add_words(total, crowd.masked[site][frame])
        Unmasker(streams).frame(total, 0, frame)
        np.testing.assert_array_equal(total, part)


def test_sixty_four_sites_mask_together_and_twenty_one_may_be_lost() -> None:
    crowd = Crowd(64, sizes=(50,)).announce().deal()
    lost = crowd.names[::3][:21]
    crowd.mask(without=lost).agree().reveal()
    crowd.check_sum()
    assert len(crowd.survivors) < 16_384


# dropout at every stage


def test_a_site_lost_before_it_announced_is_not_missed() -> None:
    lost = [name(2)]
    crowd = Crowd().announce(without=lost).deal(without=lost).mask(without=lost).agree().reveal()
    crowd.check_sum()
    assert name(2) not in crowd.masked


def test_a_site_lost_after_its_keys_is_not_masked_with() -> None:
    crowd = upto(Step.SHARES).deal(without=[name(4)])
    crowd.mask(without=[name(4)]).agree().reveal()
    crowd.check_sum()


def test_a_site_lost_after_its_shares_leaves_no_mask_behind() -> None:
    crowd = upto(Step.MASKED).mask(without=[name(1)]).agree().reveal()
    crowd.check_sum()


def test_a_site_lost_after_its_masked_update_stays_in_the_sum() -> None:
    crowd = upto(Step.AGREEMENT).agree(without=[name(5)]).reveal(without=[name(5)])
    crowd.check_sum()
    assert name(5) in crowd.masked


def test_a_site_lost_during_the_reveal_stays_in_the_sum() -> None:
    crowd = upto(Step.REVEAL).reveal(without=[name(3)])
    crowd.check_sum()


def test_one_is_lost_at_every_stage_of_one_round() -> None:
    crowd = Crowd(12)
    lost = [name(1)]
    crowd.announce(without=lost)
    crowd.deal(without=(lost := [*lost, name(3)]))
    crowd.mask(without=(lost := [*lost, name(5)]))
    crowd.agree(without=(lost := [*lost, name(7)]))
    crowd.reveal(without=[*lost])
    crowd.check_sum()
    assert strength(SecAgg(), 11).threshold == 8


def test_a_dropped_site_that_came_back_helps_to_find_the_sum_of_the_others() -> None:
    crowd = upto(Step.MASKED)
    good(crowd.sites[name(1)].masker(crowd.dealt))
    crowd.mask(without=[name(1)]).agree().reveal(without=[name(2)])
    refused(crowd.coordinator.unmasker(), Code.MASK_BELOW_THRESHOLD, "3 of 5")
    refused(crowd.sites[name(1)].agree(crowd.survivors), Code.MASK_SURVIVORS_REFUSED, "no survivor")
    assert crowd.coordinator.take_reveal(crowd.revealed(name(1))) is None
    crowd.check_sum()


@pytest.mark.parametrize("step", list(Step))
def test_below_the_threshold_no_step_is_closed_and_the_missing_are_named(step: Step) -> None:
    crowd = upto(step)
    some = crowd.names[:3] if step is not Step.KEYS else crowd.names[:2]
    gone = [site for site in crowd.names if site not in some]
    walk: dict[Step, Callable[[], object]] = {
        Step.KEYS: lambda: crowd.announce(without=gone),
        Step.SHARES: lambda: crowd.deal(without=gone),
        Step.MASKED: lambda: crowd.mask(without=gone),
        Step.AGREEMENT: lambda: crowd.agree(without=gone),
        Step.REVEAL: lambda: good(crowd.reveal(without=gone).coordinator.unmasker()),
    }
    wanted = Code.MASK_ROSTER_TOO_SMALL if step is Step.KEYS else Code.MASK_BELOW_THRESHOLD
    with pytest.raises(AssertionError, match=str(wanted)):
        walk[step]()
    assert crowd.coordinator.waiting == Waiting(step, tuple(gone))


def test_three_sites_withstand_no_loss_after_they_dealt() -> None:
    crowd = upto(Step.MASKED, Crowd(3))
    with pytest.raises(AssertionError, match="mask_below_threshold"):
        crowd.mask(without=[name(2)])


def test_a_charter_may_ask_for_a_larger_crowd_than_it_takes_to_open_the_sum() -> None:
    terms = SecAgg(minimum=6)
    crowd = upto(Step.MASKED, Crowd(7, terms=terms))
    with pytest.raises(AssertionError, match="5 of 7 sites have handed in a masked update, 6 must"):
        crowd.mask(without=crowd.names[:2])
    crowd = upto(Step.MASKED, Crowd(7, terms=terms)).mask(without=[name(1)])
    assert strength(terms, 7).threshold == 5
    shrunk = LOG.sign(list_of(crowd, crowd.names[:5], crowd.names[5:]).text)
    refused(crowd.sites[name(2)].agree(shrunk), Code.MASK_BELOW_THRESHOLD, "6 must")
    crowd.agree(without=[name(2)]).reveal(without=[name(2)])
    crowd.check_sum()


def test_a_charter_may_ask_for_more_sites_to_open_the_sum() -> None:
    crowd = upto(Step.REVEAL, Crowd(5, terms=SecAgg(threshold=5))).reveal(without=[name(4)])
    refused(crowd.coordinator.unmasker(), Code.MASK_BELOW_THRESHOLD, "4 of 5")
    assert crowd.coordinator.take_reveal(crowd.revealed(name(4))) is None
    crowd.check_sum()
    with pytest.raises(AssertionError, match="mask_roster_too_small"):
        Crowd(5, terms=SecAgg(threshold=5)).announce(without=[name(1)])


def test_the_coordinator_says_for_whom_it_waits() -> None:
    crowd = Crowd(4)
    seen = [crowd.coordinator.waiting]
    for method in (crowd.announce, crowd.deal, crowd.mask, crowd.agree):
        method()
        seen.append(crowd.coordinator.waiting)
    assert [w.step for w in seen] == list(Step)
    assert {w.sites for w in seen} == {tuple(crowd.names)}
    crowd.reveal()
    assert crowd.coordinator.waiting == Waiting(Step.REVEAL, ())


# repeats and restarts


def test_a_killed_site_says_the_same_bytes_again() -> None:
    crowd = upto(Step.REVEAL)
    again = crowd.site(name(2), bound=Bound.from_text(crowd.sites[name(2)].bound.to_text()))
    assert again.keys() == crowd.sites[name(2)].keys()
    assert again.deal(crowd.roster) == next(d for d in crowd.dealt if b"site-02" in d.note)
    words = crowd.words(name(2))
    masker = good(again.masker(crowd.dealt))
    for number, part in enumerate(words):
        masker.frame(part, number, 0)
        assert part.tobytes() == crowd.masked[name(2)][number]
    assert again.agree(crowd.survivors) in crowd.agreements
    assert again.reveal(crowd.survivors, crowd.agreements) == crowd.revealed(name(2))


def test_a_coordinator_that_takes_in_the_same_words_again_goes_on_where_it_was() -> None:
    crowd = upto(Step.REVEAL, Crowd(4)).reveal()
    again = RoundMasking(crowd.attempt, terms=SecAgg(), log=LOG, sites=crowd.keys)
    for data in reversed(crowd.roster):
        assert again.take_keys(data) is None and again.take_keys(data) is None
    assert again.close_keys() == crowd.roster
    for deal in reversed(crowd.dealt):
        assert again.take_deal(deal) is None and again.take_deal(deal) is None
    assert again.close_deals() == crowd.dealt
    digest_of_deals = crowd.sites[name(1)].bound.deals or ""
    for site in reversed(crowd.names):
        assert again.take_masked(site, digest_of_deals) is None
    assert again.close_masked() == crowd.survivors
    for agreement in reversed(crowd.agreements):
        assert again.take_agreement(agreement) is None
    assert again.close_agreements() == crowd.agreements
    for site in reversed(crowd.names):
        assert again.take_reveal(crowd.revealed(site)) is None
    assert again.close_reveals() == crowd.coordinator.close_reveals()


def test_a_survivor_list_that_was_kept_stands_though_more_updates_came_since() -> None:
    crowd = upto(Step.MASKED).mask(without=[name(5)])
    again = RoundMasking(crowd.attempt, terms=SecAgg(), log=LOG, sites=crowd.keys)
    for data in crowd.roster:
        again.take_keys(data)
    good(again.close_keys())
    for deal in crowd.dealt:
        again.take_deal(deal)
    good(again.close_deals())
    digest_of_deals = crowd.sites[name(1)].bound.deals or ""
    for site in crowd.names:
        assert again.take_masked(site, digest_of_deals) is None
    shrunk = LOG.sign(list_of(crowd, crowd.names[:3], crowd.names[3:]).text)
    refused(again.close_masked(shrunk), Code.MASK_BELOW_THRESHOLD)
    assert again.close_masked(crowd.survivors) == crowd.survivors == again.close_masked()
    refused(
        again.take_masked(name(5), digest_of_deals), Code.MASK_SURVIVORS_REFUSED, "after the survivor list"
    )
    refused(again.take_masked(name(1), "sha256:00"), Code.MASK_SHARES_INVALID, "other deals")
    refused(again.take_masked("zoe", digest_of_deals), Code.MASK_SHARES_INVALID, "other deals")


def test_a_retried_round_shares_no_word_with_the_first_try() -> None:
    first = upto(Step.AGREEMENT)
    second = Crowd(attempt=later(first))
    upto(Step.REVEAL, second).reveal().check_sum()
    assert all(
        a != b for site in first.names for a, b in zip(first.masked[site], second.masked[site], strict=True)
    )


def test_what_binds_a_site_is_read_as_it_was_written() -> None:
    bound = Bound(ATTEMPT, roster="sha256:aa", deals=None)
    assert Bound.from_text(bound.to_text()) == bound


# a coordinator that cheats


def forged_keys(crowd: Crowd) -> tuple[bytes, ...]:
    """Keys the coordinator knows, in the name of site 2: signed by itself under that site's name."""
    own = Secrets(b"\x13" * 32, ATTEMPT, name(2))
    note = KeysNote(
        **vars(ATTEMPT),
        site=name(2),
        channel=own.channel.public_key().public_bytes_raw().hex(),
        mask=own.mask.public_key().public_bytes_raw().hex(),
    )
    forged = Signer(name(2), b"\x13" * 32).sign(note.text)
    return (crowd.roster[0], forged, *crowd.roster[2:])


def earlier_keys(crowd: Crowd, **change: int) -> tuple[bytes, ...]:
    replayed = crowd.site(name(2), attempt=replace(ATTEMPT, **change)).keys()
    return (crowd.roster[0], replayed, *crowd.roster[2:])


def with_mask_key(crowd: Crowd, public: str, channel: str | None = None) -> tuple[bytes, ...]:
    said = KeysNote.from_note(parse(crowd.roster[1]))
    changed = replace(said, mask=public, channel=channel or said.channel)
    return (crowd.roster[0], signer_of(name(2)).sign(changed.text), *crowd.roster[2:])


ROSTERS: dict[str, tuple[Callable[[Crowd], tuple[bytes, ...]], Code, str]] = {
    "keys swapped for the coordinator's own": (forged_keys, Code.MASK_KEYS_INVALID, "no trusted key"),
    "keys of an old round": (lambda c: earlier_keys(c, round=2), Code.MASK_KEYS_INVALID, "round 2"),
    "keys of an old attempt": (lambda c: earlier_keys(c, attempt=9), Code.MASK_KEYS_INVALID, "attempt 9"),
    "two sites only": (lambda c: c.roster[:2], Code.MASK_ROSTER_TOO_SMALL, "2 sites"),
    "a site twice": (lambda c: (*c.roster, c.roster[1]), Code.MASK_KEYS_INVALID, "twice"),
    "this site missing": (lambda c: c.roster[1:], Code.MASK_KEYS_INVALID, "site-01 does not stand"),
    "a key of two sites": (
        lambda c: with_mask_key(c, KeysNote.from_note(parse(c.roster[2])).mask),
        Code.MASK_KEYS_INVALID,
        "the same key",
    ),
    "one key for both uses": (
        lambda c: with_mask_key(c, *[KeysNote.from_note(parse(c.roster[1])).mask] * 2),
        Code.MASK_KEYS_INVALID,
        "the same key",
    ),
    "a key of order one": (lambda c: with_mask_key(c, "00" * 32), Code.MASK_KEYS_INVALID, "full order"),
    "a key of order two": (
        lambda c: with_mask_key(c, "01" + "00" * 31),
        Code.MASK_KEYS_INVALID,
        "full order",
    ),
    "a key of order eight": (
        lambda c: with_mask_key(c, "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        Code.MASK_KEYS_INVALID,
        "full order",
    ),
    "a key in capitals": (
        lambda c: with_mask_key(c, KeysNote.from_note(parse(c.roster[1])).mask.upper()),
        Code.MASK_KEYS_INVALID,
        "no X25519 key",
    ),
    "no key": (lambda c: with_mask_key(c, "x"), Code.MASK_KEYS_INVALID, "no X25519 key"),
    "no note": (lambda c: (*c.roster[:4], b"hello\n"), Code.MASK_KEYS_INVALID, "no hansa-mask-keys/v1"),
    "a stranger": (
        lambda c: (*c.roster, Crowd(6).sites[name(6)].keys()),
        Code.MASK_KEYS_INVALID,
        "site-06 has no part",
    ),
    "sixty-five sites": (lambda c: c.roster * 13, Code.MASK_KEYS_INVALID, "at most 64"),
}


@pytest.mark.parametrize("case", ROSTERS)
def test_a_site_deals_to_no_roster_but_a_true_one(case: str) -> None:
    change, code, words = ROSTERS[case]
    crowd = upto(Step.SHARES)
    answer = crowd.sites[name(1)].deal(change(crowd))
    refused(answer, code, words)
    assert crowd.sites[name(1)].bound == Bound(ATTEMPT), "a refused roster binds nobody"


def test_a_site_deals_to_one_roster_only_also_after_a_restart() -> None:
    crowd = upto(Step.SHARES)
    site = crowd.sites[name(1)]
    good(site.deal(crowd.roster))
    refused(site.deal(crowd.roster[:4]), Code.MASK_ATTEMPT_REFUSED, "different roster")
    again = crowd.site(name(1), bound=site.bound)
    refused(again.deal(crowd.roster[:4]), Code.MASK_ATTEMPT_REFUSED, "different roster")
    good(again.deal(crowd.roster))


def test_a_site_keeps_out_of_a_crowd_that_is_smaller_than_it_asks_for() -> None:
    crowd = Crowd(terms=SecAgg(minimum=5))
    notes = [crowd.sites[site].keys() for site in crowd.names[:4]]
    refused(crowd.sites[name(1)].deal(notes), Code.MASK_ROSTER_TOO_SMALL, "asks for 5")


def other_deal(crowd: Crowd, **changes: object) -> tuple[Deal, ...]:
    said = SharesNote.from_note(parse(crowd.dealt[1].note))
    note = signer_of(name(2)).sign(replace(said, **changes).text)  # type: ignore[arg-type]
    return (crowd.dealt[0], replace(crowd.dealt[1], note=note), *crowd.dealt[2:])


def swapped_bundle(crowd: Crowd) -> tuple[Deal, ...]:
    return (crowd.dealt[0], Deal(crowd.dealt[1].note, crowd.dealt[2].bundle), *crowd.dealt[3:])


DEALS: dict[str, tuple[Callable[[Crowd], tuple[Deal, ...]], Code, str]] = {
    "too few": (lambda c: c.dealt[:3], Code.MASK_BELOW_THRESHOLD, "3 of 5"),
    "one twice": (lambda c: (*c.dealt, c.dealt[1]), Code.MASK_SHARES_INVALID, "dealt twice"),
    "another's bundle": (swapped_bundle, Code.MASK_SHARES_INVALID, "another bundle"),
    "a short bundle": (
        lambda c: (Deal(c.dealt[0].note, b""), *c.dealt[1:]),
        Code.MASK_SHARES_INVALID,
        "dealt 0 bytes",
    ),
    "to another roster": (
        lambda c: other_deal(c, roster="sha256:00"),
        Code.MASK_SHARES_INVALID,
        "another roster",
    ),
    "a lower threshold": (lambda c: other_deal(c, threshold=2), Code.MASK_SHARES_INVALID, "for 2 sites"),
    "of an old round": (lambda c: other_deal(c, round=2), Code.MASK_SHARES_INVALID, "round 2"),
    "this site missing": (lambda c: c.dealt[1:], Code.MASK_ATTEMPT_REFUSED, "does not stand among"),
}


@pytest.mark.parametrize("case", DEALS)
def test_a_site_masks_under_no_deals_but_true_ones(case: str) -> None:
    change, code, words = DEALS[case]
    crowd = upto(Step.MASKED)
    refused(crowd.sites[name(1)].masker(change(crowd)), code, words)


def test_a_site_masks_under_one_set_of_deals_only_also_after_a_restart() -> None:
    crowd = upto(Step.MASKED)
    site = crowd.sites[name(1)]
    good(site.masker(crowd.dealt))
    refused(site.masker(crowd.dealt[:4]), Code.MASK_ATTEMPT_REFUSED, "different deals")
    again = crowd.site(name(1), bound=site.bound)
    refused(again.masker(crowd.dealt), Code.MASK_ATTEMPT_REFUSED, "before the roster")
    good(again.deal(crowd.roster))
    refused(again.masker(crowd.dealt[:4]), Code.MASK_ATTEMPT_REFUSED, "different deals")
    good(again.masker(crowd.dealt))


def test_sites_that_were_shown_different_crowds_cancel_no_mask_of_each_other() -> None:
    """A coordinator cannot cut the crowd in two: the mask of a pair is bound to the deals both were shown."""
    crowd = upto(Step.MASKED)
    one, other = (Secrets(secret_of(site), ATTEMPT, site) for site in (name(1), name(2)))
    roster = good(Roster.read(crowd.roster, attempt=ATTEMPT, sites=crowd.keys, terms=SecAgg()))
    views = [
        good(Deals.read(deals, roster=roster, sites=crowd.keys)) for deals in (crowd.dealt[:4], crowd.dealt)
    ]
    used = [{s.key for s in streams(secrets, view)} for secrets, view in ((one, views[0]), (other, views[1]))]
    assert not used[0] & used[1]
    assert len({s.key for s in streams(one, views[1])} & used[1]) == 1


LISTS: dict[str, tuple[Callable[[Crowd], SurvivorsNote], Signer, str]] = {
    "on both sides": (
        lambda c: list_of(c, c.names[:4], c.names[3:]),
        LOG,
        "both sides",
    ),
    "somebody left out": (lambda c: list_of(c, c.names[:4], []), LOG, "every site"),
    "a stranger": (lambda c: list_of(c, [*c.names[:4], "zoe"], c.names[4:]), LOG, "every site"),
    "one twice": (lambda c: list_of(c, [c.names[0], *c.names[:4]], c.names[4:]), LOG, "every site"),
    "out of order": (lambda c: list_of(c, c.names[:4][::-1], c.names[4:]), LOG, "order"),
    "signed by another": (lambda c: list_of(c, c.names[:4], c.names[4:]), MALLORY, "no survivor list"),
    "of an old round": (
        lambda c: list_of(c, c.names[:4], c.names[4:], of=replace(ATTEMPT, round=2)),
        LOG,
        "round 2",
    ),
    "of another attempt": (
        lambda c: list_of(c, c.names[:4], c.names[4:], of=replace(ATTEMPT, attempt=2)),
        LOG,
        "attempt 2",
    ),
    "over other deals": (
        lambda c: list_of(c, c.names[:4], c.names[4:], deals="sha256:00"),
        LOG,
        "other deals",
    ),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_site_agrees_to_no_list_but_a_fair_one(case: str) -> None:
    make, signer, words = LISTS[case]
    crowd = upto(Step.AGREEMENT)
    site = crowd.sites[name(1)]
    forged = signer.sign(make(crowd).text)
    refused(site.agree(forged), Code.MASK_SURVIVORS_REFUSED, words)
    refused(site.reveal(forged, ()), Code.MASK_SURVIVORS_REFUSED, words)
    assert site.bound.survivors is None
    good(site.agree(crowd.survivors))


def test_a_list_that_shrank_below_the_threshold_is_refused() -> None:
    crowd = upto(Step.AGREEMENT)
    shrunk = LOG.sign(list_of(crowd, crowd.names[:3], crowd.names[3:]).text)
    refused(crowd.sites[name(1)].agree(shrunk), Code.MASK_BELOW_THRESHOLD, "3 of 5")


def test_a_second_list_is_refused_also_after_a_restart_and_the_first_has_the_same_answer() -> None:
    crowd = upto(Step.AGREEMENT)
    site = crowd.sites[name(1)]
    first = good(site.agree(crowd.survivors))
    second = LOG.sign(list_of(crowd, crowd.names[:4], crowd.names[4:]).text)
    refused(site.agree(second), Code.MASK_SURVIVORS_REFUSED, "second, different")
    again = crowd.site(name(1), bound=site.bound)
    good(again.deal(crowd.roster))
    good(again.masker(crowd.dealt))
    refused(again.agree(second), Code.MASK_SURVIVORS_REFUSED, "second, different")
    refused(again.reveal(second, ()), Code.MASK_SURVIVORS_REFUSED, "second, different")
    assert again.agree(crowd.survivors) == first


def test_nothing_is_revealed_before_enough_survivors_agreed_to_the_very_same_list() -> None:
    crowd = upto(Step.AGREEMENT).agree()
    site = crowd.sites[name(1)]
    refused(site.reveal(crowd.survivors, crowd.agreements[:3]), Code.MASK_BELOW_THRESHOLD, "3 of 5")
    refused(site.reveal(crowd.survivors, crowd.agreements[:1] * 5), Code.MASK_BELOW_THRESHOLD, "1 of 5")
    second = Crowd().announce().deal().mask(without=[name(5)]).agree()
    refused(
        site.reveal(crowd.survivors, (*crowd.agreements[:3], second.agreements[3])),
        Code.MASK_SURVIVORS_REFUSED,
        "another survivor list",
    )
    good(site.reveal(crowd.survivors, crowd.agreements[1:]))


def test_two_lists_cannot_both_be_agreed_to() -> None:
    """Of five sites four must agree, and each agrees once: after a first list at most one is left for a second."""
    crowd = upto(Step.AGREEMENT).agree()
    second = LOG.sign(list_of(crowd, crowd.names[:4], crowd.names[4:]).text)
    assert all(isinstance(crowd.sites[site].agree(second), Refusal) for site in crowd.names)


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_coordinator_that_shows_two_lists_to_two_halves_learns_no_secret_of_anybody(cut: int) -> None:
    """Three of ten sites side with it and agree to anything; the others agree once, so one list at most has seven."""
    crowd = upto(Step.AGREEMENT, Crowd(10))
    friends, honest = crowd.names[:3], crowd.names[3:]
    lists = [
        LOG.sign(list_of(crowd, [n for n in crowd.names if n != lost], [lost]).text)
        for lost in (crowd.names[3], crowd.names[9])
    ]
    agreed: list[list[bytes]] = [[], []]
    for which, signed in enumerate(lists):
        for site in friends:
            said = AgreementNote(
                **vars(ATTEMPT), site=site, survivors=SurvivorsNote.from_note(parse(signed)).digest
            )
            agreed[which].append(signer_of(site).sign(said.text))
    for position, site in enumerate(honest):
        answer = crowd.sites[site].agree(lists[position >= cut])
        if not isinstance(answer, Refusal):
            agreed[position >= cut].append(answer)
    revealed = [
        which
        for which in (0, 1)
        for site in honest
        if not isinstance(crowd.sites[site].reveal(lists[which], agreed[which]), Refusal)
    ]
    assert len(set(revealed)) <= 1


def test_a_list_is_not_answered_by_a_site_that_has_not_masked() -> None:
    crowd = upto(Step.AGREEMENT)
    fresh = crowd.site(name(1))
    refused(fresh.agree(crowd.survivors), Code.MASK_SURVIVORS_REFUSED, "has masked nothing")
    refused(fresh.reveal(crowd.survivors, ()), Code.MASK_SURVIVORS_REFUSED, "has masked nothing")


def test_an_old_round_is_not_played_again() -> None:
    crowd = upto(Step.REVEAL)
    bound = crowd.sites[name(1)].bound
    refused(
        crowd.begin(name(1), bound=replace(bound, attempt=replace(ATTEMPT, round=4))),
        Code.MASK_ATTEMPT_REFUSED,
    )
    same_number = replace(bound, attempt=replace(ATTEMPT, charter="sha256:11"))
    refused(crowd.begin(name(1), bound=same_number), Code.MASK_ATTEMPT_REFUSED)


def test_after_a_survivor_list_the_same_update_is_in_no_second_sum() -> None:
    """Two sums of one round over different crowds would differ by the update of whoever made the difference."""
    crowd = upto(Step.AGREEMENT)
    site = crowd.sites[name(1)]
    unanswered = site.bound
    good(crowd.begin(name(1), bound=unanswered, attempt=later(crowd)))
    good(site.agree(crowd.survivors))
    answer = crowd.begin(name(1), bound=site.bound, attempt=later(crowd))
    refused(answer, Code.MASK_ATTEMPT_REFUSED, "after a survivor list")
    fresh = crowd.begin(name(1), bound=site.bound, attempt=later(crowd, rounds=1))
    assert good(fresh).bound == Bound(later(crowd, rounds=1))


# a site that cheats


def misdealing(crowd: Crowd, site: str, bundle: bytes) -> Deal:
    """`site` signs for a bundle of its own making."""
    honest = good(crowd.sites[site].deal(crowd.roster))
    said = replace(SharesNote.from_note(parse(honest.note)), bundle=digest(bundle))
    return Deal(signer_of(site).sign(said.text), bundle)


def changed_at(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def junk(shares: tuple[int, int], **to: object) -> bytes:
    return bytes(80)


def other_shares(shares: tuple[int, int], **to: object) -> bytes:
    return seal_shares((shares[0], shares[1] ^ 1), **to)  # type: ignore[arg-type]


def for_another(shares: tuple[int, int], **to: object) -> bytes:
    return seal_shares(shares, **{**to, "receiver": name(2)})  # type: ignore[arg-type]


@pytest.mark.parametrize("sealed", [junk, other_shares, for_another])
def test_wrong_shares_are_found_by_their_receiver_who_names_the_dealer_and_is_done_without(
    sealed: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, crooked = name(1), name(5)

    def seal(shares: tuple[int, int], **to: object) -> bytes:
        wrong = (to["sender"], to["receiver"]) == (crooked, victim)
        return (sealed if wrong else seal_shares)(shares, **to)  # type: ignore[operator]

    monkeypatch.setattr(dealing, "seal_shares", seal)
    crowd = upto(Step.MASKED)
    answer = refused(crowd.sites[victim].masker(crowd.dealt), Code.MASK_SHARES_INVALID, "site-05 dealt")
    assert answer.details == {"site": crooked} and crowd.sites[victim].bound.deals is None
    assert crowd.coordinator.take_complaint(crowd.sites[victim].complain(crooked)) is None
    assert crowd.coordinator.complaints == {victim: crooked}
    crowd.mask(without=[victim]).agree().reveal()
    crowd.check_sum()


def test_a_complaint_about_nobody_or_from_nobody_is_refused() -> None:
    crowd = upto(Step.MASKED)
    site = crowd.sites[name(1)]
    good(site.masker(crowd.dealt))
    for accused in (name(1), "zoe"):
        refused(crowd.coordinator.take_complaint(site.complain(accused)), Code.MASK_SHARES_INVALID)
    refused(crowd.coordinator.take_complaint(crowd.roster[0]), Code.MASK_SHARES_INVALID)
    assert crowd.coordinator.complaints == {}


def test_a_wrong_share_in_the_reveal_is_left_out_and_its_site_named() -> None:
    crowd = upto(Step.REVEAL)
    true = crowd.revealed(name(2))
    for position in range(0, len(true.shares), 32):
        shares = changed_at(true.shares, position)
        said = replace(RevealNote.from_note(parse(true.note)), shares=digest(shares))
        wrong = Reveal(signer_of(name(2)).sign(said.text), shares)
        answer = refused(
            crowd.coordinator.take_reveal(wrong), Code.MASK_SHARES_INVALID, "site-02 reveals a share"
        )
        assert answer.details == {"site": name(2)}
    crowd.reveal(without=[name(2)])
    crowd.check_sum()


@pytest.mark.parametrize(("half", "lost", "made"), [(0, name(5), "mask key"), (1, name(4), "seed")])
def test_shares_that_fit_the_commitments_and_make_another_secret_convict_their_dealer(
    half: int, lost: str, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = dealing._shares

    def crooked(secrets: Secrets, roster: Roster) -> list[tuple[int, int]]:
        shares = honest(secrets, roster)
        if secrets.site == name(5):
            first = list(shares[0])
            first[half] ^= 1
            shares[0] = (first[0], first[1])
        return shares

    monkeypatch.setattr(dealing, "_shares", crooked)
    crowd = upto(Step.MASKED).mask(without=[lost]).agree().reveal()
    answer = refused(crowd.coordinator.unmasker(), Code.MASK_SHARES_INVALID, made)
    assert answer.details == {"site": name(5)}


def test_two_different_words_of_one_site_are_refused_by_the_coordinator() -> None:
    crowd = Crowd()
    site = crowd.sites[name(1)]
    assert crowd.coordinator.take_keys(site.keys()) is None
    other = KeysNote.from_note(parse(crowd.sites[name(1)].keys()))
    swapped = replace(other, channel=other.mask, mask=other.channel)
    answer = crowd.coordinator.take_keys(signer_of(name(1)).sign(swapped.text))
    refused(answer, Code.MASK_KEYS_INVALID, "twice")
    crowd = upto(Step.SHARES)
    honest = good(crowd.sites[name(1)].deal(crowd.roster))
    assert crowd.coordinator.take_deal(honest) is None
    second = misdealing(crowd, name(1), changed_at(honest.bundle, 0))
    refused(crowd.coordinator.take_deal(second), Code.MASK_SHARES_INVALID, "deals twice")


def test_late_words_are_refused_by_the_coordinator() -> None:
    crowd = Crowd().announce(without=[name(5)])
    refused(crowd.coordinator.take_keys(crowd.sites[name(5)].keys()), Code.MASK_KEYS_INVALID, "closed")
    crowd.names.remove(name(5))
    late = good(crowd.sites[name(4)].deal(crowd.roster))
    crowd.deal(without=[name(4)])
    refused(crowd.coordinator.take_deal(late), Code.MASK_SHARES_INVALID, "closed")


def test_words_about_another_list_are_refused_by_the_coordinator() -> None:
    crowd, other = upto(Step.REVEAL), Crowd().announce().deal().mask(without=[name(5)]).agree()
    refused(crowd.coordinator.take_agreement(other.agreements[0]), Code.MASK_SURVIVORS_REFUSED, "another")
    refused(crowd.coordinator.take_reveal(other.revealed(name(1))), Code.MASK_SHARES_INVALID, "another")
    swapped = Reveal(crowd.revealed(name(1)).note, crowd.revealed(name(2)).shares)
    refused(crowd.coordinator.take_reveal(swapped), Code.MASK_SHARES_INVALID, "other shares")


@pytest.mark.parametrize("sites", range(3, 65))
def test_the_strength_of_a_roster_holds_what_it_says(sites: int) -> None:
    found = strength(SecAgg(), sites)
    assert 3 * found.threshold > 2 * sites and found.dropouts == sites - found.threshold
    assert 2 * found.threshold - sites > found.colluders, "an honest site would have to agree twice"
    assert found.threshold - found.colluders >= 2, "two honest survivors are in every sum"
    assert found.threshold > found.colluders, "colluders alone reveal nothing"
