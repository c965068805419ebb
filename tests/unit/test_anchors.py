"""A newcomer may go by what enough members vouch for; what a coordinator signs and cannot prove convicts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commons import charter_file
from commons.anchors import Anchor, Shown, entries_digest, suffices
from commons.chain import Trust, VerifiedCharter, Wanted, verify_chain
from commons.chain_file import ChainFile
from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.log import Checkpoint
from commons.notes import Signer, digest, parse
from commons.records import Kind, Record
from governance.proof import chain_bundle
from tests.support.chamber import LOG, MEMBERS, Chamber, Log, ballot, charter, sign, signer


def anchor(
    chamber: Chamber, member: str, version: int | None = None, *, by: Signer | None = None, **lie: Any
) -> bytes:
    of = chamber.members.charters[version or chamber.charter.version]
    note = Anchor(
        consortium="demo", member=member, charter_version=of.version, charter=charter_file.digest(of)
    )
    return (by or signer(member)).sign(replace(note, **lie).text)


def law(chamber: Chamber, steps: int) -> None:
    chamber.pass_into_law(parameters={"steps": steps}, nonce=f"{steps:032x}")


def vouch(chamber: Chamber, *members: str) -> None:
    for member in members:
        chamber.take(chamber.members.decide_anchor(parse(anchor(chamber, member)), chamber.now_ms))


def aged(*vouching: str) -> Chamber:
    """Three votes into law, the charter then vouched for, and one vote more."""
    chamber = Chamber()
    for steps in (11, 12, 13):
        law(chamber, steps)
    vouch(chamber, *vouching)
    law(chamber, 14)
    return chamber


def shown(chamber: Chamber, wanted: Wanted = Wanted()) -> ChainFile:  # noqa: B008 - frozen
    bundle = chain_bundle(chamber, wanted)  # type: ignore[arg-type]
    assert not isinstance(bundle, Refusal)
    checkpoint, entries, consistency = bundle
    return signed(chamber.journal, chamber.founding, checkpoint, entries, consistency=tuple(consistency))


def signed(log: Log, founding: Charter, checkpoint: bytes, entries: Sequence[Any], **more: Any) -> ChainFile:
    leaves = [(index, leaf) for index, leaf, _ in entries]
    note = Shown(
        consortium="demo", size=log.size, charter_version=1, charter="sha256:" + "0" * 64,
        entries=entries_digest(leaves),
    )  # fmt: skip
    return ChainFile.of(founding, checkpoint, entries, LOG.sign(note.text), **more)


def verified(answer: VerifiedCharter | Refusal) -> VerifiedCharter:
    assert isinstance(answer, VerifiedCharter), answer
    return answer


def test_two_thirds_of_the_members_spare_a_newcomer_the_votes_before() -> None:
    chamber = aged("acme", "beta")
    file = shown(chamber)
    assert len(file.entries) < len(shown(chamber, Wanted(whole=True)).entries)
    found = verified(file.verify())
    assert found.charter == chamber.charter
    assert [e.version for e in found.executed] == [5]
    assert "after charter version 4, which 2 of 3 members vouch for" in found.steps[4]
    assert [e.version for e in verified(shown(chamber, Wanted(whole=True)).verify()).executed] == [2, 3, 4, 5]


def test_fewer_than_two_thirds_vouch_for_nothing() -> None:
    chamber = aged("acme")
    found = verified(shown(chamber).verify())
    assert [e.version for e in found.executed] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("groups", "signers", "enough"),
    [
        ({}, ("a", "b"), False),
        ({}, ("a", "b", "c"), True),
        ({"b": "a", "c": "a"}, ("a", "b", "c"), False),
        ({"b": "a"}, ("a", "b", "c"), True),
        ({}, ("a", "b", "zeta"), False),
    ],
)
def test_affiliates_alone_never_vouch_for_a_consortium(
    groups: dict[str, str], signers: tuple[str, ...], enough: bool
) -> None:
    members = tuple(
        {"name": m, "key": signer(m).vkey, "budget_micro": 0, "group": groups.get(m, "")} for m in "abcd"
    )
    sites = tuple({**s.model_dump(), "partner": "a", "payer": "a"} for s in charter().sites)
    assert suffices(charter(members=members, sites=sites), signers) is enough


def test_anchors_by_strangers_stolen_names_or_for_another_charter_count_for_nothing() -> None:
    chamber = aged()
    other = {"charter": "sha256:" + "0" * 64}
    for note, code in (
        (anchor(chamber, "zeta"), Code.NOT_AUTHORISED),
        (anchor(chamber, "acme", consortium="other"), Code.NOT_AUTHORISED),
        (anchor(chamber, "acme", by=signer("beta")), Code.SIGNATURE_INVALID),
        (anchor(chamber, "acme", **other), Code.CHARTER_INVALID),
        (anchor(chamber, "acme", charter_version=99), Code.CHARTER_INVALID),
    ):
        answer = chamber.members.decide_anchor(parse(note), chamber.now_ms)
        assert isinstance(answer, Refusal) and answer.code == code, answer
    nonsense = signer("acme").sign("hansa-anchor/v1\nmember acme\n")
    answer = chamber.members.decide_anchor(parse(nonsense), chamber.now_ms)
    assert isinstance(answer, Refusal) and answer.code == Code.NOTE_MALFORMED
    vouch(chamber, "acme")
    assert chamber.members.find(anchor(chamber, "acme")) == chamber.journal.size - 1
    assert chamber.members.find(b"no note") is None
    assert chamber.members.decide_anchor(parse(anchor(chamber, "acme")), chamber.now_ms) == []


def test_a_coordinator_cannot_forge_what_members_vouch_for() -> None:
    """It writes a charter of its own and anchors it with keys of its own, under the members' names."""
    chamber = Chamber()
    law(chamber, 11)
    evil = chamber.charter.model_copy(update={"version": 3})
    chamber.take([Record(Kind.CHARTER, chamber.now_ms, charter_file.canonical(evil))])
    for member in MEMBERS:
        forged = anchor(chamber, member, by=Signer(member, b"\x01" * 32))
        chamber.take([Record(Kind.ANCHOR, chamber.now_ms, forged)])
    entries = chamber.journal.entries()
    answer = verify_chain(entries, chamber.journal.checkpoint(), [], trust=chamber.trust)
    assert (
        isinstance(answer, Refusal)
        and "version 3" in answer.message
        and "no executed proposal" in answer.message
    )


def test_members_admitted_since_vouch_in_their_turn() -> None:
    founding = charter(sites=tuple({**s.model_dump(), "payer": s.partner} for s in charter().sites))
    chamber = Chamber(founding)
    for name in ("dora", "echo", "fern"):
        by_all(
            chamber,
            feature="member-admit",
            parameters={"name": name, "key": signer(name).vkey, "budget_micro": 0},
        )
    vouch(chamber, "acme", "beta")
    by_all(chamber, feature="member-expel", parameters={"name": "coop", "reason": "Left."})
    vouch(chamber, "acme", "dora", "echo", "fern")
    by_all(chamber, parameters={"steps": 77})
    found = verified(shown(chamber).verify())
    assert found.charter == chamber.charter and [e.version for e in found.executed] == [6]
    assert "after charter version 5, which 4 of 6 members vouch for" in found.steps[4]


def by_all(chamber: Chamber, **changes: Any) -> None:
    opening = chamber.propose(**changes)
    chamber.vote(opening, **dict.fromkeys(opening.electorate, "for"))  # type: ignore[arg-type]
    chamber.close()
    chamber.execute()


def test_a_site_that_was_here_before_recounts_what_came_since() -> None:
    chamber = aged()
    before = verified(shown(chamber).verify())
    law(chamber, 15)
    bundle = chain_bundle(chamber, Wanted(before.checkpoint.size, before.version))  # type: ignore[arg-type]
    assert not isinstance(bundle, Refusal)
    checkpoint, entries, consistency = bundle
    found = verified(
        verify_chain(
            entries, checkpoint, consistency, trust=chamber.trust, have=before.checkpoint,
            least_version=before.version, known=before.digest,
        )
    )  # fmt: skip
    assert found.charter == chamber.charter and [e.version for e in found.executed] == [6]
    assert "after charter version 5, which was verified here before" in found.steps[4]
    forged = digest(b"another charter")
    answer = verify_chain(
        entries, checkpoint, consistency, trust=chamber.trust, have=before.checkpoint, least_version=5, known=forged
    )  # fmt: skip
    assert isinstance(answer, Refusal)


def test_a_vote_that_was_open_when_members_vouched_is_recounted_from_before() -> None:
    chamber = Chamber()
    law(chamber, 11)
    vouch(chamber, *MEMBERS)
    opening = chamber.propose(feature="routing", parameters={"routing": "lean"})
    law(chamber, 12)
    vouch(chamber, *MEMBERS)
    chamber.vote(opening, acme="for", beta="for", coop="for")
    chamber.close()
    chamber.execute()
    found = verified(shown(chamber).verify())
    assert found.charter == chamber.charter and [e.version for e in found.executed] == [3, 4]
    log = chamber.journal
    answer = verify_chain(log.entries(), log.checkpoint(), [], trust=chamber.trust)
    assert isinstance(answer, Refusal) and "ask for the whole chain" in answer.message
    assert isinstance(
        verify_chain(log.entries(), log.checkpoint(), [], trust=chamber.trust, whole=True), VerifiedCharter
    )


def test_a_proof_file_is_read_back_and_one_that_is_none_is_refused() -> None:
    file = shown(aged("acme", "beta"))
    assert ChainFile.load(file.dump()) == file
    said = file.signed()
    assert said is not None and said.size == Checkpoint.read(parse(file.checkpoint)).size
    for wrong in (b"", b"[]", b"{}", b"\xff", b"[" * 10_000, file.dump().replace(b"hansa-chain/v1", b"hansa-chain/v2"),
                  file.dump().replace(b'"entries":[[0,', b'"entries":[[-1,'), file.dump().replace(b'"whole":false', b'"whole":0')):  # fmt: skip
        with pytest.raises(ValueError, match=r".*"):
            ChainFile.load(wrong)
    cut = replace(file, entries=file.entries[:-1])
    answer = cut.verify()
    assert isinstance(answer, Refusal) and answer.message.startswith("step 3 inclusion")
    assert cut.signed() is None, "whoever takes a record out accuses nobody"
    assert replace(file, shown=b"").signed() is None


def test_a_lying_coordinator_is_convicted_by_the_file_of_what_it_showed(tmp_path: Path) -> None:
    """A changed hyper-parameter, a forged tally, a dropped ballot: the evidence holds without the one who was lied to."""
    honest = aged()
    lies = {}
    records = list(honest.journal.all)
    last = max(i for i, r in enumerate(records) if r.kind is Kind.CHARTER)
    changed = records[last].body.replace(b'"learning_rate":0.01', b'"learning_rate":0.02')
    lies["hyper-parameter"] = [*records[:last], replace(records[last], body=changed)]
    tally = max(i for i, r in enumerate(records) if r.kind is Kind.OUTCOME)
    forged = records[tally].body.replace(b'"for":3', b'"for":2')
    lies["tally"] = [*records[:tally], replace(records[tally], body=forged), *records[tally + 1 :]]
    ballots = [i for i, r in enumerate(records) if r.kind is Kind.BALLOT][-3:]
    for name, lie in lies.items():
        log = Log(lie)
        file = signed(log, honest.founding, log.checkpoint(), log.entries())
        convicted(tmp_path / f"{name}.json", file)
    log = Log(records)
    file = signed(log, honest.founding, log.checkpoint(), log.entries(without=ballots[:2]))
    convicted(tmp_path / "dropped.json", file)


def convicted(path: Path, file: ChainFile) -> None:
    path.write_bytes(file.dump())
    read = ChainFile.load(path.read_bytes())
    assert read.signed() is not None, f"{path.name}: the coordinator did not sign it"
    assert isinstance(read.verify(), Refusal), f"{path.name}: the lie was believed"


def test_a_split_view_is_convicted_by_both_checkpoints() -> None:
    one, other = aged(), aged()
    other.pass_into_law(feature="routing", parameters={"routing": "lean"})
    fork = Chamber()
    for _ in range(8):
        law(fork, 30 + fork.charter.version)
    file = replace(shown(fork), earlier=other.journal.checkpoint())
    answer = file.verify()
    assert isinstance(answer, Refusal) and answer.code == Code.LOG_FORKED
    assert file.signed() is not None
    assert isinstance(replace(shown(one), earlier=b"").verify(), VerifiedCharter)


def test_a_receipt_in_the_file_convicts_a_coordinator_that_left_the_ballot_out() -> None:
    chamber = Chamber()
    opening = chamber.propose()
    note = sign(ballot(opening, "beta", "against"))
    (index,) = chamber.submit(note)
    chamber.proposals.items[opening.proposal].ballots.clear()
    chamber.vote(opening, acme="for", coop="for")
    chamber.now_ms = opening.closes_ms
    chamber.close()
    chamber.execute()
    log = chamber.journal
    file = signed(log, chamber.founding, log.checkpoint(), log.entries(without=[index]))
    assert isinstance(file.verify(), VerifiedCharter)
    answer = replace(file, receipts=((index, note),)).verify()
    assert isinstance(answer, Refusal) and "beta's ballot on P-0001 has a receipt" in answer.message


def test_trust_in_a_file_is_in_its_founding_charter_and_nothing_else() -> None:
    file = shown(aged("acme", "beta"))
    with pytest.raises(ValueError, match="not a verifier key"):
        replace(file, founding=charter(consortium__log_key="nonsense")).verify()
    answer = replace(file, founding=charter(voting__window_s=1)).verify()
    assert isinstance(answer, Refusal) and answer.message.startswith("step 4 founding")
    assert Trust.of(file.founding).log == LOG.verifier
