"""What members and the operator do: propose, vote, dispute, settle quarrels, convert pledges, reverse charges.

They go through the coordinator's own services. Notes get lost, come twice and overtake one another; a receipt that
was given holds for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast

import grpc

from commons import charter_file
from commons.ballots import Ballot, Proposal
from commons.claims import ConvertNote, CountersignNote, DisputeNote, RulingNote
from commons.motions import Motion, Pause
from commons.names import Digest
from commons.notes import parse
from commons.pledging import Pledge
from commons.signed import text_digest
from commons.wire.v1 import consortium_pb2 as wire
from governance.ledger import Hold
from tests.simulation.cast import random_grant, signer

if TYPE_CHECKING:
    from tests.simulation.world import World

Reason = Literal["metering_error", "hardware_fault", "duplicate", "rate_error"]
REASONS: tuple[Reason, ...] = ("metering_error", "hardware_fault", "duplicate", "rate_error")


_STRATEGIES = (
    {"strategy": "expert_diloco"},
    {"strategy": "diloco", "routing": "joint"},
    {"strategy": "sovereign", "routing": "lean"},
    {"strategy": "branch_mix"},
)


class Refused(Exception):
    """The service declined."""


class _Context:
    """As much of a call's context as a service needs to decline."""

    def set_trailing_metadata(self, metadata: Sequence[Any]) -> None:
        return None

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        raise Refused(details)


CONTEXT = cast(grpc.ServicerContext, _Context())


class Members:
    """Every method is one event."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._disputes: list[tuple[str, Hold]] = []
        """Digest of what was sent, and the charge it is about."""
        self._spoken: list[bytes] = []
        self._reversals: list[wire.ReverseChargeRequest] = []

    def act(self) -> None:
        """Somebody does something, now and then, also after the run."""
        world = self._world
        world.after(world.random.randrange(300, 6_000), self.act)
        if world.desk is None:
            return
        deeds: tuple[Callable[[], None], ...] = (
            self._propose, self._propose, self._dispute, self._dispute, self._rule, self._convert, self._reverse,
            self._repeat, self._countersign,
        )  # fmt: skip
        world.random.choice(deeds)()

    def _propose(self) -> None:
        """Something for all to vote on."""
        world, dice = self._world, self._world.random
        charter = world.charter
        members = [member.name for member in charter.members]
        wishes: dict[str, Callable[[], dict[str, Any]]] = {
            "inner-steps": lambda: {"steps": dice.randrange(1, 4)},
            "strategy": lambda: dice.choice(_STRATEGIES),
            "balancing": lambda: {"rate": dice.choice((0.0, 0.01))},
            "top-k": lambda: {"experts": dice.randrange(1, 4)},
            "context-length": lambda: {"tokens": dice.choice((16, 24))},
            "merge": lambda: {"merge": dice.choice(("mean", "radial"))},
            "fragments": lambda: dice.choice(
                ({"fragments": dice.randrange(1, 4)}, {"owned_every": dice.randrange(1, 4)})
            ),
            "uplink-codec": lambda: {"trunk": dice.choice(("fp32", "int8")), "expert": "fp32"},
            "grant": lambda: random_grant(dice, f"v{dice.randrange(10**6)}", members, world.time_ms),
            "rates": lambda: {"device": "cpu", "micro_per_gflop": dice.randrange(5)},
            "accounting": lambda: {"charge_rejected_percent": dice.randrange(101)},
            "sponsor": lambda: {"site": dice.choice(charter.sites).name, "payer": dice.choice(members)},
            "ruling": lambda: {"dispute": self._some_dispute(), "upheld_micro": dice.randrange(1000)},
        }
        if charter.voting.officers:
            name = dice.choice(members)
            suspended = {m.name for m in charter.members if m.suspended}
            if name in suspended:
                wishes["member-readmit"] = lambda: {"name": name}
            elif not suspended:
                wishes["member-suspend"] = lambda: {"name": name, "reason": "Silent."}
        feature = dice.choice(sorted(wishes))
        proposal = Proposal(
            consortium=charter.consortium.name, proposer=dice.choice(members), title="A wish", feature=feature,
            parameters=wishes[feature](), charter=charter_file.digest(charter),
            effective_round=dice.choice((1, 1, dice.randrange(1, charter.learning.rounds + 2))), nonce=dice.randbytes(16).hex(),
            needs_micro=dice.choice((0, 0, 0, dice.randrange(1, 2_000))),
        )  # fmt: skip
        self._say(proposal.proposer, proposal.compose())
        for member in members:
            world.message(partial(self._vote, proposal, member))
        for _ in range(dice.randrange(3)):
            world.message(partial(self._pledge, proposal))
        if charter.voting.officers:
            world.message(partial(self._move, proposal))

    def _vote(self, proposal: Proposal, voter: str) -> None:
        world = self._world
        if world.desk is None:
            return
        views = world.desk.consortium.proposals.views()
        view = next((p for p in views if p.id == proposal.id), None)
        if view is None:
            return
        ballot = Ballot(
            consortium=proposal.consortium, proposal=proposal.id, rules=Digest(view.rules),
            electorate=Digest(view.electorate_digest), voter=voter,
            choice=world.random.choice(("for", "for", "for", "against", "abstain")),
            nonce=world.random.randbytes(16).hex(), cast_at="2026-11-23T18:40:12Z",
        )  # fmt: skip
        self._say(voter, ballot.compose())

    def _pledge(self, proposal: Proposal) -> None:
        """Somebody, for somebody, for a time that may be too short."""
        world, dice = self._world, self._world.random
        members = [member.name for member in world.charter.members]
        pledge = Pledge(
            consortium=proposal.consortium, proposal=proposal.id, member=dice.choice(members),
            to=dice.choice(members), amount_micro=dice.choice((0, 1, 1_500, dice.randrange(1, 50_000))),
            expires_ms=world.time_ms + dice.choice((500, 60_000, 10**9)), nonce=dice.randbytes(16).hex(),
        )  # fmt: skip
        self._say(pledge.member, pledge.text)

    def _move(self, proposal: Proposal) -> None:
        """Somebody withdraws, stops or vetoes it, or tries to; an officer pauses the rounds now and then."""
        world, dice = self._world, self._world.random
        charter = world.charter
        what: Literal["withdraw", "discuss", "resume", "veto"] = dice.choice(
            ("withdraw", "discuss", "discuss", "resume", "veto", "veto")
        )
        by = {"withdraw": proposal.proposer, "veto": charter.voting.officers[0]}
        motion = Motion(
            consortium=charter.consortium.name, proposal=proposal.id, motion=what, reason="It is wrong.",
            member=by.get(what, dice.choice(charter.members).name), nonce=dice.randbytes(16).hex(),
        )  # fmt: skip
        self._say(motion.member, motion.text)
        if dice.random() < 0.2:
            pause = Pause(
                consortium=charter.consortium.name, member=charter.voting.officers[0], reason="Stop.",
                nonce=dice.randbytes(16).hex(),
            )  # fmt: skip
            self._say(pause.member, pause.text)

    def _dispute(self) -> None:
        """A charge, mostly by who pays it, mostly not above what is left of it."""
        hold = self._some_charge()
        if hold is None:
            return
        world, dice = self._world, self._world.random
        partner = hold.request.payer if dice.random() < 0.9 else dice.choice(world.charter.members).name
        note = DisputeNote(
            consortium=world.charter.consortium.name, partner=partner, transfer=hold.settle_id,
            amount_micro=dice.randrange(hold.charged_micro + 2), reason=dice.choice(REASONS), why="It is wrong.",
        )  # fmt: skip
        self._disputes.append((text_digest(parse(signer(partner).sign(note.text))), hold))
        self._say(partner, note.text)

    def _rule(self) -> None:
        """One party gives in, or somebody who is none tries to."""
        if not self._disputes:
            return
        world, dice = self._world, self._world.random
        dispute, hold = dice.choice(self._disputes)
        outcome: Literal["withdrawn", "conceded"] = "withdrawn" if dice.random() < 0.5 else "conceded"
        party = hold.request.payer if outcome == "withdrawn" else hold.partner
        partner = party if dice.random() < 0.9 else dice.choice(world.charter.members).name
        note = RulingNote(
            consortium=world.charter.consortium.name, partner=partner, dispute=dispute, outcome=outcome
        )
        self._say(partner, note.text)

    def _convert(self) -> None:
        world, dice = self._world, self._world.random
        pledged = [grant.member for grant in world.charter.grants if grant.unit != "micro"]
        partner = dice.choice(pledged or [member.name for member in world.charter.members])
        note = ConvertNote(
            consortium=world.charter.consortium.name, partner=partner, device="cpu",
            amount_ms=dice.choice((0, 1, 333, 10_000)), nonce=dice.randbytes(16).hex(),
        )  # fmt: skip
        self._say(partner, note.text)

    def _reverse(self) -> None:
        """By the operator; now and then the same again."""
        world, dice = self._world, self._world.random
        hold = self._some_charge()
        if hold is None:
            return
        amount = dice.choice((None, dice.randrange(hold.charged_micro + 2)))
        request = wire.ReverseChargeRequest(
            token=f"t-{dice.randrange(10**9)}",
            settle=hold.settle_id,
            amount_micro=amount,
            reason=dice.choice(REASONS),
        )
        self._reversals.append(request)
        world.message(lambda: self._ask_reversal(dice.choice(self._reversals)))

    def _countersign(self) -> None:
        """A member agrees with its statement of a period that is over, or with another one."""
        world, dice = self._world, self._world.random
        assert world.desk is not None and world.statements is not None
        book = world.desk.consortium.book
        if not book.periods:
            return
        period, partner = dice.choice(list(book.periods.values())), dice.choice(world.charter.members).name
        digest = (
            world.statements.note(partner, period).digest if dice.random() < 0.8 else "sha256:" + "0" * 64
        )
        note = CountersignNote(
            consortium=world.charter.consortium.name, partner=partner, period=period.name, statement=digest
        )
        self._say(partner, note.text)

    def _repeat(self) -> None:
        """A note of long ago arrives once more."""
        if self._spoken:
            note = self._world.random.choice(self._spoken)
            self._world.message(lambda: self._submit(note))

    def _say(self, member: str, text: str) -> None:
        note = signer(member).sign(text)
        self._spoken.append(note)
        self._world.message(lambda: self._submit(note))

    def _submit(self, note: bytes) -> None:
        world = self._world
        if world.chamber is None:
            return
        try:
            receipt = world.chamber.Submit(wire.NoteRequest(note=note), CONTEXT)
        except Refused:
            return
        world.told(note, receipt.index)

    def _ask_reversal(self, request: wire.ReverseChargeRequest) -> None:
        world = self._world
        if world.operator is None:
            return
        try:
            receipt = world.operator.ReverseCharge(request, CONTEXT)
        except Refused:
            return
        world.told(request.token.encode(), receipt.index)

    def _some_charge(self) -> Hold | None:
        desk = self._world.desk
        assert desk is not None
        settled = [hold for hold in desk.consortium.ledger.charges() if hold.state == "settled"]
        return self._world.random.choice(settled) if settled else None

    def _some_dispute(self) -> str:
        """Raised or not."""
        known = [dispute for dispute, _ in self._disputes]
        return self._world.random.choice(known) if known else "sha256:" + "0" * 64
