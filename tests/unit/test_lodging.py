"""A ballot that a coordinator takes no notice of is found out by the sites it was lodged with, and nobody is accused wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commons.ballots import Choice
from commons.chain import VerifiedCharter, verify_chain
from commons.chain_file import ChainFile
from commons.errors import Code, HansaError, Refusal, Refused, Unreachable
from commons.lodging import LODGED_BYTES_MAX, MARGIN_MS, Lodged, LodgedBallot
from commons.notes import Signer, parse
from commons.opening import Opening
from commons.records import Kind, Record
from commons.signed import text_digest
from governance.fsck import judge
from governance.lodging import decide_lodged
from governance.tracking.items import File
from governance.tracking.votes import Votes
from tests.support.chamber import Chamber, ballot, charter, delegation, sign, signer
from tests.unit.test_anchors import signed
from tests.unit.test_course import motion
from tests.unit.test_verify import Consortium
from workers import lodging
from workers.lodging import LodgedFolder, lodge

HOUR_MS = 3_600_000
PARTNER = {"berlin": "acme", "turin": "beta"}


def chamber() -> Chamber:
    """Votes last an hour; both sites are enrolled."""
    made = Chamber(charter(voting={"window_s": 3600}))
    enrol(made)
    return made


def enrol(made: Chamber) -> None:
    for site, partner in PARTNER.items():
        made.take(made.members.decide_enrol_site(delegation(partner, site), made.now_ms))


def words(note: bytes, by_site: str, at_ms: int, *, by: Signer | None = None, **lie: Any) -> bytes:
    said = ballot_of(note)
    text = Lodged(
        consortium="demo", proposal=said.proposal, voter=said.voter, ballot=text_digest(parse(note)), site=by_site,
        at_ms=at_ms,
    )  # fmt: skip
    return (by or signer(f"{PARTNER[by_site]}/{by_site}")).sign(replace(text, **lie).text)


def ballot_of(note: bytes) -> Any:
    return LodgedBallot(note, ()).ballot


def lodged(
    opening: Opening, *sites: str, at_ms: int | None = None, choice: Choice = "against"
) -> LodgedBallot:
    """beta's ballot, half an hour into the vote."""
    note = sign(ballot(opening, "beta", choice))
    at = opening.opened_ms + HOUR_MS // 2 if at_ms is None else at_ms
    return LodgedBallot(note, tuple(words(note, site, at) for site in sites))


def carried_out(made: Chamber, **choices: Choice) -> Opening:
    """A vote that the coordinator closes and carries out with these ballots alone."""
    opening = made.propose()
    made.vote(opening, **(choices or {"acme": "for", "coop": "for"}))
    made.now_ms = opening.closes_ms
    made.close()
    made.execute()
    assert made.charter.version == 2
    return opening


def checked(made: Chamber, *kept: LodgedBallot, own_site: str = "") -> VerifiedCharter | Refusal:
    log = made.journal
    return verify_chain(log.entries(), log.checkpoint(), [], trust=made.trust, lodged=kept, own_site=own_site)


def test_the_site_that_keeps_a_dropped_ballot_refuses_what_the_vote_made_law() -> None:
    made = chamber()
    one = lodged(carried_out(made), "berlin")
    answer = checked(made, one, own_site="berlin")
    assert isinstance(answer, Refusal) and answer.code is Code.CHARTER_UNPROVEN
    assert answer.message.startswith("step 7 witnesses: beta's ballot on P-0001, lodged in time with berlin")
    assert isinstance(checked(made, one, own_site="turin"), VerifiedCharter), (
        "one partner's word convinces no other"
    )


def test_the_words_of_two_partners_sites_convict_the_coordinator_by_a_file(tmp_path: Path) -> None:
    made = chamber()
    one = lodged(carried_out(made), "berlin", "turin")
    log = made.journal
    file = signed(log, made.founding, log.checkpoint(), log.entries(), lodged=(one,))
    read = ChainFile.load(file.dump())
    assert read == file and read.signed() is not None
    answer = read.verify()
    assert isinstance(answer, Refusal) and "lodged in time with berlin, turin" in answer.message
    alone = replace(file, lodged=(replace(one, words=one.words[:1]),))
    assert isinstance(alone.verify(), VerifiedCharter)
    both = LodgedBallot.together([replace(one, words=(w,)) for w in (*one.words, one.words[0])])
    assert both == [one], "what several sites say of one ballot is put together"


def test_a_ballot_that_is_in_the_vote_accuses_nobody_also_when_a_later_one_replaced_it() -> None:
    made = chamber()
    opening = made.propose()
    one = lodged(opening, "berlin", choice="against")
    made.submit(one.note)
    made.vote(opening, acme="for", coop="for")
    assert made.proposals.items[opening.proposal].state(made.now_ms) == "succeeded", "it was complete"
    made.close()
    made.execute()
    found = checked(made, one, own_site="berlin")
    assert isinstance(found, VerifiedCharter)
    assert "1 ballots that sites keep are in their votes" in found.steps[6]


@pytest.mark.parametrize(
    ("at", "taken"),
    [
        (lambda o: o.opened_ms + MARGIN_MS - 1, False),
        (lambda o: o.opened_ms + MARGIN_MS, True),
        (lambda o: o.closes_ms - MARGIN_MS - 1, True),
        (lambda o: o.closes_ms - MARGIN_MS, False),
        (lambda o: o.closes_ms + HOUR_MS, False),
    ],
    ids=["too early", "begun", "in time", "in the last minutes", "afterwards"],
)
def test_lodged_too_early_or_too_late_it_proves_nothing(at: Callable[[Opening], int], taken: bool) -> None:
    made = chamber()
    opening = carried_out(made)
    one = lodged(opening, "berlin", at_ms=at(opening))
    assert isinstance(checked(made, one, own_site="berlin"), Refusal) is taken


def test_a_ballot_that_came_after_all_had_voted_proves_nothing() -> None:
    made = chamber()
    opening = made.propose()
    made.now_ms += HOUR_MS // 4
    made.vote(opening, acme="for", beta="for", coop="for")
    made.close()
    made.execute()
    one = lodged(opening, "berlin")
    assert isinstance(checked(made, one, own_site="berlin"), VerifiedCharter)


def test_a_ballot_lodged_while_the_vote_was_paused_proves_nothing() -> None:
    made = chamber()
    opening = made.propose()
    for member in ("acme", "coop"):
        made.submit(motion(opening, member, "discuss"))
    made.now_ms += HOUR_MS
    made.vote(opening, acme="for", coop="for")
    made.now_ms = opening.closes_ms + HOUR_MS
    made.close()
    made.execute()
    assert made.charter.version == 2
    assert isinstance(checked(made, lodged(opening, "berlin"), own_site="berlin"), VerifiedCharter)
    later = lodged(opening, "berlin", at_ms=opening.opened_ms + HOUR_MS * 3 // 2)
    assert isinstance(checked(made, later, own_site="berlin"), Refusal)


def test_forged_words_and_ballots_that_are_none_of_the_voters_accuse_nobody() -> None:
    made = chamber()
    opening = carried_out(made)
    good, at_ms = lodged(opening, "berlin"), opening.opened_ms + HOUR_MS // 2
    by_coop = sign(ballot(opening, "beta", "against"), signer("coop"))
    stranger = sign(ballot(opening, "zeta", "against"))
    lies = {
        "signed by another": (words(good.note, "berlin", at_ms, by=signer("coop")),),
        "about another ballot": (words(good.note, "berlin", at_ms, ballot="sha256:" + "0" * 64),),
        "by a site that is none": (words(good.note, "berlin", at_ms, site="moon"),),
        "no word at all": (b"nonsense", good.note),
    }
    for name, lie in lies.items():
        found = checked(made, replace(good, words=lie), own_site="berlin")
        assert isinstance(found, VerifiedCharter), name
    for note in (by_coop, stranger, sign(ballot(opening, "beta", "against", rules="sha256:" + "1" * 64))):
        one = LodgedBallot(note, (words(note, "berlin", at_ms),))
        assert isinstance(checked(made, one, own_site="berlin"), VerifiedCharter)
    other = made.propose(parameters={"steps": 30}, nonce="1" * 32)
    assert isinstance(checked(made, lodged(other, "berlin"), own_site="berlin"), VerifiedCharter)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format":"hansa-lodged-ballot/v1","ballot":"x","words":[]}',
        b"x" * (LODGED_BYTES_MAX + 1),
    ],
)
def test_a_file_that_is_no_lodged_ballot_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        LodgedBallot.load(data)


def test_a_lodged_ballot_has_a_bounded_number_of_words() -> None:
    with pytest.raises(ValueError, match="not a"):
        LodgedBallot.load(lodged(chamber().propose(), *["berlin"] * 65).dump())


def test_a_site_does_not_train_on_the_lie_until_its_operator_has_taken_the_ballot_out(tmp_path: Path) -> None:
    consortium = Consortium(tmp_path, voting={"window_s": 3600})
    made = consortium.chamber
    opening = carried_out(made)
    folder = LodgedFolder(tmp_path / "lodged")
    path = folder.keep(lodged(opening, "berlin"))
    refused = consortium.site().charter(consortium.chain)
    assert isinstance(refused, Refusal) and "lodged in time with berlin" in refused.message
    path.unlink()
    assert isinstance(consortium.site().charter(consortium.chain), VerifiedCharter)


def test_a_ballot_is_kept_before_it_is_sent_and_whatever_the_coordinator_says(tmp_path: Path) -> None:
    made, folder = chamber(), LodgedFolder(tmp_path / "lodged")
    note = sign(ballot(made.propose(), "beta", "for"))

    def refuses(_: bytes) -> int:
        assert len(folder.ballots()) == 1, "it was not kept first"
        raise Refused(Refusal(Code.PROPOSAL_CLOSED, "no"))

    def silent(_: bytes) -> int:
        raise Unreachable("nobody is there")

    key = signer("acme/berlin")
    answers = ((refuses, "refuses it: no"), (silent, "does not answer"), (lambda _: 7, "record 7"))
    for at_ms, (submit, told) in enumerate(answers, 5):
        one, said = lodge(note, made.charter, key, folder, submit, at_ms)
        assert told in said and folder.ballots() == [one]
        word = Lodged.from_note(parse(one.words[0]))
        assert (word.site, word.at_ms) == ("berlin", 5), "it counts by the time at which it came first"


def test_what_is_no_members_ballot_is_not_kept(tmp_path: Path) -> None:
    made, folder = chamber(), LodgedFolder(tmp_path / "lodged")
    opening = made.propose()
    for note, code in (
        (sign(ballot(opening, "zeta", "for")), Code.NOT_AUTHORISED),
        (sign(ballot(opening, "beta", "for", consortium="other")), Code.NOT_AUTHORISED),
        (b"nonsense", Code.NOTE_MALFORMED),
    ):
        with pytest.raises(Refused) as refused:
            lodge(note, made.charter, signer("acme/berlin"), folder, lambda _: 7, 5)
        assert refused.value.refusal.code is code
    assert folder.ballots() == []


def test_a_full_or_broken_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, one = LodgedFolder(tmp_path), lodged(chamber().propose(), "berlin")
    monkeypatch.setattr(lodging, "KEPT_MAX", 0)
    with pytest.raises(HansaError, match="take out those of votes that are over"):
        folder.keep(one)
    (tmp_path / "a.json").write_text("nonsense")
    with pytest.raises(HansaError, match=r"a\.json cannot be read"):
        folder.ballots()


def test_the_auditor_finds_a_ballot_that_was_left_out_of_any_vote_that_ended() -> None:
    made = chamber()
    opening = made.propose()
    made.vote(opening, acme="against", coop="against")
    both = lodged(opening, "berlin", "turin", choice="for")
    assert judge(made.journal.all, [both]) == (), "the vote goes on"
    made.now_ms = opening.closes_ms
    made.close()
    (finding,) = judge(made.journal.all, [both])
    assert "beta's ballot on P-0001 is not in the journal, which berlin, turin had in time" in finding.what
    stranger = sign(ballot(opening, "zeta", "for"))
    by_coop = sign(ballot(opening, "beta", "for"), signer("coop"))
    at_ms = opening.opened_ms + HOUR_MS // 2
    for note in (stranger, by_coop):
        one = LodgedBallot(note, tuple(words(note, site, at_ms) for site in PARTNER))
        assert judge(made.journal.all, [one]) == ()
    other = Chamber(charter(voting={"window_s": 3600})).propose(nonce="1" * 32)
    for one in (replace(both, words=both.words[:1]), lodged(other, "berlin", "turin")):
        assert judge(made.journal.all, [one]) == ()


def test_the_journal_counts_the_ballots_that_sites_keep(tmp_path: Path) -> None:
    made = chamber()
    opening = made.propose()
    one = lodged(opening, "berlin", "turin")

    def said(note: bytes) -> list[Record] | Refusal:
        return decide_lodged(made.proposals, made.members, parse(note), made.charter, made.now_ms)

    early = said(one.words[0])
    assert isinstance(early, Refusal) and "hands that in first" in early.message
    made.submit(one.note)
    for note in one.words:
        made.take(said(note))
        assert said(note) == []
    assert made.proposals.views(made.now_ms)[0].lodged == 1
    assert judge(made.journal.all) == ()
    fold = Votes()
    shown = [i for n, r in enumerate(made.journal.all) for i in fold.apply(n, r) if isinstance(i, File)]
    kept = {i.path: i.text for i in shown if i.path.startswith("lodged/")}
    short = one.digest[7:15]
    assert kept == {
        f"lodged/{site}-beta-{short}.note": note.decode()
        for site, note in zip(("berlin", "turin"), one.words, strict=True)
    }
    for note, code in (
        (sign(ballot(opening, "beta", "for")), Code.NOTE_MALFORMED),
        (words(one.note, "berlin", 1, by=signer("coop")), Code.SIGNATURE_INVALID),
        (words(one.note, "berlin", 1, site="moon"), Code.NOT_AUTHORISED),
        (words(one.note, "berlin", 1, consortium="other"), Code.NOT_AUTHORISED),
        (words(one.note, "berlin", 1, proposal="sha256:" + "0" * 64), Code.PROPOSAL_UNKNOWN),
    ):
        answer = said(note)
        assert isinstance(answer, Refusal) and answer.code is code, answer
    without = [r for r in made.journal.all if r.kind is not Kind.BALLOT]
    assert any("a ballot of beta that this journal does not have" in str(f) for f in judge(without))
