"""What a site may say about masks that is wrong: refused with its code, and the others' sum is found and is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from commons.errors import Code, Refusal, StoreError
from commons.masking import Step
from commons.masking.attempt import ComplaintNote
from commons.names import SiteId
from orchestrator import masking
from orchestrator.masking import MaskingAttempt, Said, Shown
from tests.support.consortium import masking_charter
from tests.support.fuzz_masks import SITES, Box
from tests.support.masked_rounds import LOG, Crowd, good, signer_of
from tests.support.servicer import Aborted


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """Five honest sites."""
    made = Box(tmp_path, Random(1), Counter(), sites=5)
    yield made
    made.close()


def in_a_round(box: Box, does: Callable[[], object]) -> tuple[str, ...]:
    """Beside what is right, `does` happens each time the coordinator waits. The sum is checked; whose it is."""

    def turn() -> None:
        box.turn()
        does()

    while not box.play(turn):
        pass
    box.check_closed()
    assert box.opened.shared == "masked"
    return tuple(sorted(box.opened.admitted))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(Aborted) as caught:
        call()
    return str(caught.value)


def complaint(box: Box, site: str, accused: str) -> str:
    view, order = box.views[1], box.orders[site]
    deals = box.sites[site].deals(order, view).digest
    of = vars(box.sites[site].attempt(order, 1))
    note = box.sites[site].key.sign(ComplaintNote(**of, site=site, accused=accused, deals=deals).text)
    return box.say(site, {"complaint": note})


def test_a_site_that_handed_in_cannot_complain_itself_out_of_the_sum(box: Box) -> None:
    codes: list[str] = []

    def does() -> None:
        if SiteId("alder") in box.opened.admitted and len(codes) < 2:
            codes.append(refused(lambda: complaint(box, "alder", "birch")))
            box.over = True  # the next one is said to a coordinator that started again

    assert in_a_round(box, does) == SITES
    assert codes == [Code.MASK_ATTEMPT_REFUSED] * 2


def test_a_site_that_complained_cannot_hand_in_before_it_is_told_that_it_is_out(box: Box) -> None:
    codes: dict[str, str] = {}

    def does() -> None:
        able = sorted(box.ready.intersection(box.opened.waiting))
        if able and not codes:
            [site, *_] = able
            complaint(box, site, next(name for name in SITES if name != site))
            codes[site] = refused(lambda: box.port.hand_in(site, box.packed[site]))

    taken = in_a_round(box, does)
    [(site, code)] = codes.items()
    assert code == Code.MASK_ATTEMPT_REFUSED and set(taken) == {*SITES} - {site}


def test_an_update_that_was_not_masked_with_the_others_is_not_admitted(box: Box) -> None:
    codes: set[str] = set()

    def does() -> None:
        if "alder" not in box.ready:
            codes.add(refused(lambda: box.port.hand_in("alder", box.packed["alder"])))

    assert in_a_round(box, does) == SITES
    assert codes == {Code.MASK_ATTEMPT_REFUSED}


class Kept:
    """An attempt of five at the coordinator, and its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.crowd = folder, Crowd()
        self.attempt = self.again()

    def again(self, **changes: Crowd) -> MaskingAttempt:
        """What another process knows of it; with the keys of another crowd."""
        of = changes.get("crowd", self.crowd)
        charter = masking_charter(SITES)
        self.attempt = MaskingAttempt(self.folder, of.attempt, charter, log_key=LOG, sites=of.keys)
        return self.attempt

    def announce(self, *sites: str) -> None:
        for site in sites:
            assert self.says(site, Said(Step.KEYS, self.crowd.sites[site].keys())) is None
        self.attempt.move(0)

    def deal(self) -> None:
        for site in self.crowd.names:
            deal = good(self.crowd.sites[site].deal(self.attempt.shown().keys))
            assert self.says(site, Said(Step.SHARES, deal.note, deal.bundle)) is None
        self.attempt.move(0)
        for site in self.crowd.names:
            good(self.crowd.sites[site].masker(self.attempt.shown().deals))

    def says(self, site: str, said: Said) -> Refusal | None:
        return self.attempt.say(SiteId(site), said)

    @property
    def shown(self) -> Shown:
        return self.attempt.shown()


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "masks")


def test_a_word_said_for_another_site_is_not_kept_in_its_place(kept: Kept) -> None:
    one, other = kept.crowd.names[:2]
    found = kept.says(one, Said(Step.KEYS, kept.crowd.sites[other].keys()))
    assert found is not None and found.code is Code.SIGNATURE_INVALID
    kept.announce(*kept.crowd.names)
    before = kept.shown
    kept.again()
    assert kept.shown == before and len(before.keys) == 5


def test_of_two_complaints_the_first_stands_also_after_a_restart(kept: Kept) -> None:
    kept.announce(*kept.crowd.names)
    kept.deal()
    one, *accused = kept.crowd.names[:3]
    for name in accused:
        assert kept.says(one, Said(Step.MASKED, kept.crowd.sites[one].complain(name), complains=True)) is None
    before = kept.attempt.left_out()
    assert accused[0] in before[SiteId(one)] and kept.again().left_out() == before


def test_the_same_word_under_another_signature_too_is_shown_as_it_was(kept: Kept) -> None:
    kept.announce(*kept.crowd.names)
    before, one = kept.shown, kept.crowd.names[0]
    note = kept.crowd.sites[one].keys()
    twice = note + signer_of("stranger").sign("x\n").partition(b"\n\n")[2]
    assert kept.says(one, Said(Step.KEYS, twice)) is None
    kept.again()
    assert kept.shown == before


def test_what_the_disk_does_not_take_was_not_said(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    *most, last = kept.crowd.names

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(masking, "write_file", full)
        with pytest.raises(StoreError):
            kept.announce(last)
    kept.announce(*most)
    assert kept.attempt.move(10**9), "those who are there had their time"
    before = kept.shown
    kept.again()
    assert kept.shown == before and len(before.keys) == 4


def test_an_attempt_whose_words_hold_no_more_is_lost_and_says_so(kept: Kept) -> None:
    """As when a site is enrolled with another key in the middle of a round, and the coordinator starts again."""
    kept.announce(*kept.crowd.names)
    kept.deal()
    assert kept.attempt.list_survivors(tuple(map(SiteId, kept.crowd.names))) is None
    changed = Crowd()
    changed.keys[changed.names[0]] = signer_of("another").verifier
    kept.again(crowd=changed)
    found = kept.attempt.opening()
    assert isinstance(found, Refusal) and found.code is Code.MASK_ATTEMPT_REFUSED
    assert "cannot go on from what was said in it" in found.message
    word = kept.says(kept.crowd.names[1], Said(Step.AGREEMENT, b"x"))
    assert word is not None and word.code is Code.MASK_ATTEMPT_REFUSED
    assert kept.attempt.crowd > 5, "no number of updates makes a sum of it"
    assert not kept.attempt.move(10**9) and not kept.attempt.listed
