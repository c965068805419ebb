"""What a site checks before it trains: nothing the coordinator says is believed without proof.

Steps 1 to 7 prove the charter in force (`commons.chain`). Then, for an order:

8. it is signed by the journal's key
9. it is for this consortium and this site
10. it names exactly the charter proven in steps 1 to 7
11. it names the expert map this site computes from that charter
12. its lease has not run out
13. the site's own policy allows charter and charge (`workers.policy`)
14. where updates are noised, the round spends no more of the site's privacy than charter and owner allow, by the site's own
    count (`workers.spending`)

Owns the one file that remembers what was verified last, so that the journal can never show this site less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from commons import charter_file
from commons.chain import Trust, VerifiedCharter, verify_chain
from commons.charter import Charter
from commons.clock import Clock
from commons.errors import Code, HansaError, Refusal
from commons.exchange import Exchange
from commons.experts.map import ExpertMap
from commons.identity import Seat, write_file
from commons.log import Checkpoint
from commons.notes import NoteError, Verifier, open_note
from commons.work import AssignmentNote
from workers.policy import Policy, forbids
from workers.spending import Spending

CLOCK_SLACK_MS = 300_000
"""How far this site's clock may be ahead of the coordinator's before it refuses leases."""


@dataclass(frozen=True)
class Chain:
    """What the coordinator shows to prove its charter; see `commons.chain`."""

    entries: tuple[tuple[int, bytes, tuple[bytes, ...]], ...]
    checkpoint: bytes
    consistency: tuple[bytes, ...]


Ask = Callable[[int], Chain]
"""Asks the coordinator for the chain, given the size of the journal verified last (0: none)."""


@dataclass(frozen=True)
class Order:
    """An assignment that passed every step."""

    note: AssignmentNote
    charter: Charter
    expert_map: ExpertMap
    data: bytes
    """The signed note."""
    steps: tuple[str, ...]
    """What was checked, for people."""
    sites: Mapping[str, Verifier] = field(default_factory=dict)
    """Every enrolled site's signing key, as its partner signed for it."""

    @property
    def exchange(self) -> Exchange:
        """What the order's round moves."""
        return Exchange(self.expert_map, self.charter.learning, self.note.round)


class Verification:
    """One site's memory of what it has verified, kept in `memory`. Not for several threads."""

    def __init__(self, seat: Seat, policy: Policy, memory: Path, clock: Clock, spending: Spending) -> None:
        """Raises HansaError when the seat's charter or the memory cannot be read."""
        assert seat.subject.site, "a site's seat names its site"
        self._site, self._policy, self._memory, self._clock = seat.subject.site, policy, memory, clock
        self._spending = spending
        try:
            self._trust = Trust.of(charter_file.from_canonical(seat.charter))
        except ValueError as error:
            raise HansaError(
                f"{seat.folder / 'charter.json'}: {error}; join again with a new invite"
            ) from error
        self._have, self._least_version = self._remembered()

    def charter(self, ask: Ask) -> VerifiedCharter | Refusal:
        """Steps 1 to 7 against what the coordinator shows now; what holds is remembered durably."""
        chain = ask(self._have.size if self._have else 0)
        verified = verify_chain(
            chain.entries,
            chain.checkpoint,
            chain.consistency,
            trust=self._trust,
            have=self._have,
            least_version=self._least_version,
        )
        if isinstance(verified, VerifiedCharter):
            self._remember(verified)
        return verified

    def order(self, data: bytes, ask: Ask) -> Order | Refusal:
        """All steps for the assignment note `data`. The same note may be checked again at any time. Raises StoreError when
        the site's count of its spending cannot be read."""
        verified = self.charter(ask)
        if isinstance(verified, Refusal):
            return verified
        charter, site = verified.charter, self._site
        # 8
        try:
            note = AssignmentNote.from_note(open_note(data, [self._trust.log]))
        except NoteError as error:
            return Refusal(Code.SIGNATURE_INVALID, f"step 8 order: {error}; ask the coordinator's operator")
        # 9
        if (note.consortium, note.site) != (charter.consortium.name, site):
            return Refusal(
                Code.NOT_ASSIGNED,
                f"step 9 order: it is for site {note.site} of {note.consortium}, this is site {site} of "
                f"{charter.consortium.name}",
            )
        # 10
        if (note.charter, note.charter_version) != (verified.digest, verified.version):
            return Refusal(
                Code.CHARTER_UNPROVEN,
                f"step 10 order: it is under charter {note.charter_version} ({note.charter}), proven is "
                f"{verified.version} ({verified.digest}); the coordinator must order anew",
            )
        # 11
        expert_map = ExpertMap.from_charter(charter)
        if note.expert_map != expert_map.digest:
            return Refusal(
                Code.EXPERT_MAP_MISMATCH,
                f"step 11 order: it uses expert map {note.expert_map}, site {site} computes {expert_map.digest} "
                "from the charter; both sides need versions that match",
            )
        # 12
        if self._clock.now_ms() > note.lease_until + CLOCK_SLACK_MS:
            return Refusal(
                Code.LEASE_EXPIRED,
                f"step 12 order: the lease {note.lease} is over by this site's clock; its operator checks the clock",
            )
        # 13
        if refusal := forbids(self._policy, charter, site=site, hold_micro=note.hold_micro):
            return refusal
        # 14
        if refusal := self._spending.forbids(note, charter):
            return refusal
        signed = f"8-12 order: round {note.round} of run {note.run}, signed by {self._trust.log.name}"
        steps = (*verified.steps, signed, "13 policy: allowed", "14 privacy: within what may be spent")
        return Order(note, charter, expert_map, data, steps, verified.sites)

    def _remembered(self) -> tuple[Checkpoint | None, int]:
        try:
            kept = json.loads(self._memory.read_bytes())
            root = bytes.fromhex(kept["root"])
            return Checkpoint(kept["origin"], int(kept["size"]), root), int(kept["version"])
        except FileNotFoundError:
            return None, 1
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HansaError(
                f"{self._memory} cannot be read ({error}); restore it, or remove it if you accept to forget which "
                "journal this site has seen"
            ) from error

    def _remember(self, verified: VerifiedCharter) -> None:
        head = verified.checkpoint
        if head == self._have:
            return
        kept = {
            "origin": head.origin,
            "size": head.size,
            "root": head.root.hex(),
            "version": verified.version,
        }
        write_file(self._memory, json.dumps(kept).encode())
        self._have, self._least_version = head, verified.version
