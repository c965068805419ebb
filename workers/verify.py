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
from dataclasses import dataclass, field, replace
from pathlib import Path

from commons import charter_file
from commons.chain import LACKS, Trust, VerifiedCharter, Wanted, verify_chain
from commons.chain_file import ChainFile
from commons.charter import Charter
from commons.clock import Clock
from commons.errors import Code, HansaError, Refusal
from commons.exchange import Exchange
from commons.experts.map import ExpertMap
from commons.identity import Seat, write_file
from commons.log import Checkpoint
from commons.names import Digest
from commons.notes import NoteError, Verifier, open_note, parse
from commons.work import AssignmentNote
from workers.lodging import LodgedFolder
from workers.policy import Policy, allowed, forbids
from workers.spending import Spending

EVIDENCE_MAX = 8
"""Files of evidence kept; the first ones say enough."""
CLOCK_SLACK_MS = 300_000
"""How far this site's clock may be ahead of the coordinator's before it refuses leases."""


@dataclass(frozen=True)
class Chain:
    """What the coordinator shows to prove its charter; see `commons.chain`."""

    entries: tuple[tuple[int, bytes, tuple[bytes, ...]], ...]
    checkpoint: bytes
    consistency: tuple[bytes, ...]
    shown: bytes = b""
    """The coordinator's signature under all of it."""


Ask = Callable[[Wanted], Chain]
"""Asks the coordinator for the chain, given what was verified last."""


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


@dataclass(frozen=True)
class _Last:
    """What was verified last."""

    head: Checkpoint | None = None
    version: int = 1
    charter: Digest | None = None
    """Of that version; votes before it are not recounted each time."""
    note: bytes = b""
    """The checkpoint as the log signed it."""


class Verification:
    """One site's memory of what it has verified, kept in `memory`. Not for several threads."""

    def __init__(self, seat: Seat, policy: Policy, memory: Path, clock: Clock, spending: Spending) -> None:
        """Raises HansaError when the seat's charter or the memory cannot be read."""
        assert seat.subject.site, "a site's seat names its site"
        self._site, self._policy, self._memory, self._clock = seat.subject.site, policy, memory, clock
        self._spending, self._lodged = spending, LodgedFolder(memory.with_name("lodged"))
        try:
            self._trust = Trust.of(charter_file.from_canonical(seat.charter))
        except ValueError as error:
            raise HansaError(
                f"{seat.folder / 'charter.json'}: {error}; join again with a new invite"
            ) from error
        self._last = self._remembered()

    def charter(self, ask: Ask, *, whole: bool = False) -> VerifiedCharter | Refusal:
        """Steps 1 to 7 against what the coordinator shows now; what holds is remembered durably.

        `whole`: every vote since the founding is recounted, not only those since the last time. What does not hold is kept
        as evidence beside the memory, and the refusal names the file.
        """
        last = self._last
        chain = ask(Wanted(last.head.size if last.head else 0, last.version, whole))
        verified = self._verified(chain, whole=whole)
        if isinstance(verified, VerifiedCharter):
            self._remember(verified, chain)
            return verified
        if not whole and last.head and LACKS not in verified.details:
            chain, whole = ask(Wanted(last.head.size, last.version, True)), True
        return self._with_evidence(verified, chain, whole=whole)

    def _verified(self, chain: Chain, *, whole: bool) -> VerifiedCharter | Refusal:
        last = self._last
        return verify_chain(
            chain.entries,
            chain.checkpoint,
            chain.consistency,
            trust=self._trust,
            have=last.head,
            least_version=last.version,
            known=last.charter,
            whole=whole,
            lodged=self._lodged.ballots(),
            own_site=self._site,
        )

    def _with_evidence(self, refusal: Refusal, chain: Chain, *, whole: bool) -> Refusal:
        """The refusal, with the file that proves it to others where the coordinator has signed what it showed."""
        try:
            file = ChainFile.of(
                self._trust.founding, chain.checkpoint, chain.entries, chain.shown, whole=whole,
                consistency=chain.consistency, earlier=self._last.note, lodged=tuple(self._lodged.ballots()),
            )  # fmt: skip
            convicts = file.signed() is not None and isinstance(file.verify(), Refusal)
        except ValueError:
            return refusal
        kept = sorted(self._memory.parent.glob("evidence-*.json"))
        if not convicts or len(kept) >= EVIDENCE_MAX:
            return refusal
        path = self._memory.with_name(f"evidence-{Checkpoint.read(parse(chain.checkpoint)).size}.json")
        write_file(path, file.dump())
        message = f"{refusal.message}; the coordinator has signed it, others see so with `hansa charter verify {path}`"
        return replace(refusal, message=message)

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
        if refusal := self.forbids(charter, note.hold_micro):
            return refusal
        # 14
        if refusal := self._spending.forbids(note, charter):
            return refusal
        signed = f"8-12 order: round {note.round} of run {note.run}, signed by {self._trust.log.name}"
        policy = f"13 policy: {allowed(self._policy, charter)}"
        steps = (*verified.steps, signed, policy, "14 privacy: within what may be spent")
        return Order(note, charter, expert_map, data, steps, verified.sites)

    def forbids(self, charter: Charter, hold_micro: int = 0) -> Refusal | None:
        """Step 13 alone: why the site's owner does not let it work under this charter, if so."""
        founding = self._trust.founding
        return forbids(self._policy, charter, founding=founding, site=self._site, hold_micro=hold_micro)

    def _remembered(self) -> _Last:
        try:
            kept = json.loads(self._memory.read_bytes())
            head = Checkpoint(kept["origin"], int(kept["size"]), bytes.fromhex(kept["root"]))
            charter = Digest(str(kept["charter"])) if "charter" in kept else None
            return _Last(head, int(kept["version"]), charter, str(kept.get("note", "")).encode())
        except FileNotFoundError:
            return _Last()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HansaError(
                f"{self._memory} cannot be read ({error}); restore it, or remove it if you accept to forget which "
                "journal this site has seen"
            ) from error

    def _remember(self, verified: VerifiedCharter, chain: Chain) -> None:
        head = verified.checkpoint
        if head == self._last.head:
            return
        kept = {
            "origin": head.origin,
            "size": head.size,
            "root": head.root.hex(),
            "version": verified.version,
            "charter": verified.digest,
            "note": chain.checkpoint.decode(),
        }
        write_file(self._memory, json.dumps(kept).encode())
        self._last = _Last(head, verified.version, verified.digest, chain.checkpoint)
