"""A site believes an order only when every step from the founding charter to the lease holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commons import charter_file
from commons.anchors import Shown, entries_digest
from commons.certificates import Subject
from commons.chain import VerifiedCharter, Wanted
from commons.chain_file import ChainFile
from commons.errors import Code, HansaError, Refusal
from commons.experts.map import ExpertMap
from commons.identity import Seat
from commons.privacy.accounting import epsilon_after
from commons.records import Kind, Record
from commons.work import AssignmentNote
from tests.support.chamber import LOG, Chamber, charter, delegation, founding_notes, signer
from workers.policy import Policy
from workers.spending import Spending
from workers.verify import CLOCK_SLACK_MS, Chain, Order, Verification

MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 1,
}
NOW_MS = 1_800_000_000_000


class StoppedClock:
    def now_ms(self) -> int:
        return NOW_MS


class Consortium:
    """A coordinator and site berlin's seat in it."""

    def __init__(self, tmp_path: Path, *, enrols_after_ms: int = 0, **changes: Any) -> None:
        self.memory = tmp_path / "verified.json"
        self.chamber = Chamber(charter(model__config=MODEL, **changes))
        founding = self.chamber.founding
        self.seat = Seat(
            folder=tmp_path / "seat",
            consortium="demo",
            address="127.0.0.1:1",
            subject=Subject("site", "acme", "berlin"),
            log_key=LOG.vkey,
            tls_key=b"",
            certificate=b"",
            authority=b"",
            charter=charter_file.canonical(founding),
            founding=tuple(founding_notes(founding)),
        )
        self.chamber.now_ms += enrols_after_ms
        self.chamber.take(
            self.chamber.members.decide_enrol_site(delegation("acme", "berlin"), self.chamber.now_ms)
        )

    def site(self, policy: Policy | None = None) -> Verification:
        return Verification(
            self.seat,
            policy or Policy(),
            self.memory,
            StoppedClock(),
            Spending(self.memory.with_name("privacy.json"), None),
        )

    def chain(self, wanted: Wanted) -> Chain:
        have_size = wanted.have_size
        journal = self.chamber.journal
        entries = tuple((i, leaf, tuple(path)) for i, leaf, path in journal.entries())
        consistency = tuple(journal.consistency(have_size, journal.size)) if have_size else ()
        return Chain(entries, journal.checkpoint(), consistency)

    def note(self, **changes: Any) -> AssignmentNote:
        in_force = self.chamber.charter
        order = AssignmentNote(
            consortium="demo",
            run="r1",
            round=3,
            work="train",
            site="berlin",
            base="sha256:" + "a" * 64,
            charter_version=in_force.version,
            charter=charter_file.digest(in_force),
            expert_map=ExpertMap.from_charter(in_force).digest,
            rounds=4,
            lease="lease-1",
            lease_until=NOW_MS + 60_000,
            hold="hold/r1/3/berlin",
            hold_micro=700,
        )
        return replace(order, **changes)

    def order(self, **changes: Any) -> bytes:
        return LOG.sign(self.note(**changes).text)


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path)


def refusal_of(answer: Order | Refusal) -> Refusal:
    assert isinstance(answer, Refusal), "the order was believed"
    return answer


def test_an_order_that_holds_is_believed_again_and_again(consortium: Consortium) -> None:
    site = consortium.site()
    for _ in range(2):
        order = site.order(consortium.order(), consortium.chain)
        assert isinstance(order, Order), order
        assert (order.note.round, order.charter, len(order.steps)) == (3, consortium.chamber.charter, 10)


def test_a_coordinator_that_orders_beyond_the_sites_epsilon_is_refused_by_the_sites_own_count(
    tmp_path: Path,
) -> None:
    terms = {"noise_multiplier": 2.0, "epsilon_max": epsilon_after([2.0] * 2, 1e-6) + 1e-9}
    consortium = Consortium(tmp_path, privacy={"mode": "dp", "dp": terms})
    site, spending = consortium.site(), Spending(tmp_path / "privacy.json", None)
    for number in (3, 4):
        note = consortium.order(round=number)
        order = site.order(note, consortium.chain)
        assert isinstance(order, Order), order
        spending.count(order.note, order.charter, f"payload {number}")
        assert isinstance(site.order(note, consortium.chain), Order), "sealed, it may be sent again"
    why = refusal_of(consortium.site().order(consortium.order(round=4, run="r2"), consortium.chain))
    assert why.code is Code.EXCEEDS_EPSILON and "step 14 privacy: site berlin has spent" in why.message
    evaluation = consortium.order(round=4, work="evaluate")
    assert isinstance(site.order(evaluation, consortium.chain), Order)


def test_an_executed_vote_is_followed_to_the_next_charter(consortium: Consortium) -> None:
    site = consortium.site()
    assert isinstance(site.order(consortium.order(), consortium.chain), Order)
    consortium.chamber.pass_into_law()
    order = site.order(consortium.order(), consortium.chain)
    assert isinstance(order, Order), order
    assert (order.charter.version, order.charter.learning.inner_steps) == (2, 20)


@pytest.mark.parametrize(
    ("changes", "code", "step"),
    [
        ({"site": "turin"}, Code.NOT_ASSIGNED, 9),
        ({"consortium": "other"}, Code.NOT_ASSIGNED, 9),
        ({"charter_version": 2}, Code.CHARTER_UNPROVEN, 10),
        ({"charter": "sha256:" + "b" * 64}, Code.CHARTER_UNPROVEN, 10),
        ({"expert_map": "sha256:" + "c" * 64}, Code.EXPERT_MAP_MISMATCH, 11),
        ({"lease_until": NOW_MS - CLOCK_SLACK_MS - 1}, Code.LEASE_EXPIRED, 12),
    ],
)
def test_an_order_that_is_wrong_is_refused_at_its_step(
    consortium: Consortium, changes: dict[str, Any], code: Code, step: int
) -> None:
    refusal = refusal_of(consortium.site().order(consortium.order(**changes), consortium.chain))
    assert refusal.code is code
    assert f"step {step}" in refusal.message


@pytest.mark.parametrize("by", ["acme", "acme/berlin", "somebody"])
def test_an_order_signed_by_anyone_but_the_journal_is_refused(consortium: Consortium, by: str) -> None:
    data = signer(by).sign(consortium.note().text)
    refusal = refusal_of(consortium.site().order(data, consortium.chain))
    assert (refusal.code, "step 8" in refusal.message) == (Code.SIGNATURE_INVALID, True)


def test_an_order_changed_after_signing_is_refused(consortium: Consortium) -> None:
    data = consortium.order().replace(b"hold-micro 700", b"hold-micro 900")
    refusal = refusal_of(consortium.site().order(data, consortium.chain))
    assert refusal.code is Code.SIGNATURE_INVALID


def test_a_clock_that_is_a_little_ahead_does_not_end_a_lease(consortium: Consortium) -> None:
    order = consortium.order(lease_until=NOW_MS - CLOCK_SLACK_MS)
    assert isinstance(consortium.site().order(order, consortium.chain), Order)


def test_a_charter_the_members_did_not_vote_for_is_refused(consortium: Consortium) -> None:
    consortium.chamber.pass_into_law()
    forged = consortium.chamber.charter.model_copy(update={"version": 3})
    order = consortium.order(charter_version=3, charter=charter_file.digest(forged))
    refusal = refusal_of(consortium.site().order(order, consortium.chain))
    assert refusal.code is Code.CHARTER_UNPROVEN


def test_the_owners_policy_has_the_last_word(consortium: Consortium) -> None:
    site = consortium.site(Policy(max_charge_micro_per_round=699))
    refusal = refusal_of(site.order(consortium.order(), consortium.chain))
    assert (refusal.code, "700" in refusal.message) == (Code.POLICY_FORBIDS, True)


def test_a_journal_that_lost_records_is_refused_even_by_a_restarted_site(consortium: Consortium) -> None:
    older = consortium.chain(Wanted())
    consortium.chamber.pass_into_law()
    assert isinstance(consortium.site().order(consortium.order(), consortium.chain), Order)
    refusal = refusal_of(consortium.site().order(consortium.order(), lambda _: older))
    assert refusal.code is Code.LOG_FORKED


def test_another_journal_of_the_same_size_is_refused(consortium: Consortium, tmp_path: Path) -> None:
    assert isinstance(consortium.site().order(consortium.order(), consortium.chain), Order)
    (tmp_path / "fork").mkdir()
    fork = Consortium(tmp_path / "fork", enrols_after_ms=1)
    assert fork.chamber.journal.size == consortium.chamber.journal.size
    refusal = refusal_of(consortium.site().order(consortium.order(), fork.chain))
    assert refusal.code is Code.LOG_FORKED


def test_what_a_refused_chain_showed_is_not_remembered(consortium: Consortium) -> None:
    site = consortium.site()
    shown = consortium.chain(Wanted())
    broken = replace(shown, entries=shown.entries[1:])
    refusal_of(site.order(consortium.order(), lambda _: broken))
    assert not consortium.memory.exists()


@pytest.mark.parametrize("content", ["", "{}", '{"size": 1}', "[]"])
def test_a_broken_memory_is_named_and_not_forgotten(consortium: Consortium, content: str) -> None:
    consortium.memory.write_text(content)
    with pytest.raises(HansaError, match=r"verified\.json cannot be read"):
        consortium.site()


def test_the_memory_names_the_journal_and_the_charter_seen(consortium: Consortium) -> None:
    consortium.chamber.pass_into_law()
    consortium.site().order(consortium.order(), consortium.chain)
    kept = json.loads(consortium.memory.read_text())
    assert (kept["origin"], kept["size"], kept["version"]) == ("demo", consortium.chamber.journal.size, 2)


def test_what_a_coordinator_signs_and_cannot_prove_is_kept_as_evidence_for_the_others(
    consortium: Consortium,
) -> None:
    site = consortium.site()
    assert isinstance(site.order(consortium.order(), consortium.chain), Order)
    lie = consortium.chamber.charter.model_copy(update={"version": 2})
    consortium.chamber.take([Record(Kind.CHARTER, consortium.chamber.now_ms, charter_file.canonical(lie))])

    def signed(wanted: Wanted) -> Chain:
        chain = consortium.chain(wanted)
        note = Shown(
            consortium="demo", size=consortium.chamber.journal.size, charter_version=2,
            charter=charter_file.digest(lie), entries=entries_digest([(i, leaf) for i, leaf, _ in chain.entries]),
        )  # fmt: skip
        return replace(chain, shown=LOG.sign(note.text))

    unsigned = site.charter(consortium.chain)
    assert isinstance(unsigned, Refusal) and "evidence" not in unsigned.message
    refusal = site.charter(signed)
    assert isinstance(refusal, Refusal) and "no executed proposal" in refusal.message
    (path,) = consortium.memory.parent.glob("evidence-*.json")
    assert f"hansa charter verify {path}" in refusal.message
    file = ChainFile.load(path.read_bytes())
    assert file.signed() is not None and isinstance(file.verify(), Refusal)
    assert file.earlier, "with the checkpoint that was signed before"


def test_a_site_recounts_only_the_votes_since_the_last_time(consortium: Consortium) -> None:
    site = consortium.site()
    consortium.chamber.pass_into_law()
    first = site.charter(consortium.chain)
    consortium.chamber.pass_into_law(parameters={"steps": 30}, nonce="11" * 16)
    again = consortium.site().charter(consortium.chain)
    whole = site.charter(consortium.chain, whole=True)
    counts = [len(v.executed) for v in (first, again, whole) if isinstance(v, VerifiedCharter)]
    assert counts == [1, 1, 2]
