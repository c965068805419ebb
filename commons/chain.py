"""From the founding charter to the one in force, by proof: what a site checks before it trains.

The coordinator sends records with inclusion proofs; nothing it says is believed without one. The steps:

1. checkpoint: signed by the journal's key
2. consistency: the journal extends the one we saw before, and the charter does not go back
3. inclusion: every record shown stands in the journal, in order
4. founding: version 1 is the charter our partner gave us, and every member in it signed it
5. votes: each later version follows from one proposal: by a member, opened with equal power and the rules of
   the charter then in force, ballots signed and in time, the tally recounted here passes, the feature applied
   here gives exactly the recorded charter, once, and not before its round
6. sites: the keys of sites are signed by the members they belong to
7. witnesses: as many of these sites, and of the charter's outsiders, cosigned the checkpoint as the charter demands; and
   no ballot that sites kept in time is missing from a vote that was carried out (`commons.lodging`)

What one log cannot prove alone, that no ballot was left out, its voter can: pass the receipts our partner
holds and step 5 demands that these ballots count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import Self

from commons import charter_file, merkle, notes
from commons.chain_votes import Executed, VotesWalk
from commons.charter import Charter
from commons.cosignature import cosigned
from commons.errors import Code, Refusal
from commons.founding import check_delegation, check_founding
from commons.lodging import LodgedBallot, convince, ended_ms
from commons.log import Checkpoint
from commons.merkle_multi import verify_multi
from commons.names import Digest
from commons.notes import Verifier
from commons.quorum import counted, lacking
from commons.records import Kind, Record
from commons.steps import Failed

Entry = tuple[int, bytes, Sequence[bytes]]
"""(journal index, leaf, inclusion path)."""
LACKS = "lacks"
"""In the details of a refusal: how many witnesses have not cosigned yet. Nothing else was wrong."""


@dataclass(frozen=True)
class Wanted:
    """What a caller trusts already, and how much of the rest it wants to recount."""

    have_size: int = 0
    """Records of the journal that it verified."""
    known_version: int = 1
    """Charter version that it verified; 1 is the founding charter."""
    whole: bool = False
    """Every vote since the founding, whatever is known or anchored."""


@dataclass(frozen=True)
class Trust:
    """What a site holds from its partner, not from the coordinator."""

    founding: Charter
    """Charter version 1; its members' keys are the founders'."""
    log: Verifier

    @classmethod
    def of(cls, founding: Charter) -> Self:
        """Trust in the charter our partner signed, and in the journal key it names.

        Raises ValueError when that charter holds a key that is none.
        """
        if problems := charter_file.problems(founding):
            raise ValueError("; ".join(problems))
        return cls(founding, Verifier.from_vkey(founding.consortium.log_key))


@dataclass(frozen=True)
class VerifiedCharter:
    charter: Charter
    digest: Digest
    version: int
    checkpoint: Checkpoint
    executed: tuple[Executed, ...]
    sites: Mapping[str, Verifier]
    """Enrolled site -> its signing key."""
    steps: tuple[str, ...]
    """What was checked, one line per numbered step, for people."""


def verify_chain(
    entries: Sequence[Entry],
    checkpoint: bytes,
    consistency: Sequence[bytes],
    *,
    trust: Trust,
    have: Checkpoint | None = None,
    least_version: int = 1,
    known: Digest | None = None,
    whole: bool = False,
    multi: Sequence[bytes] | None = None,
    receipts: Sequence[tuple[int, bytes]] = (),
    lodged: Sequence[LodgedBallot] = (),
    own_site: str = "",
) -> VerifiedCharter | Refusal:
    """The charter in force, proven; or a Refusal whose message begins with the step that failed.

    `have` is the last checkpoint verified here and `least_version` the charter version it led to;
    `known` is that charter's digest, from which votes are recounted then; `consistency` proves the way from there. `whole`:
    believe neither it nor anchors, and recount every vote. `multi`: one proof for all entries, whose own paths are empty. `receipts` are ballots, as (index, note), that our partner cast
    and the journal acknowledged. `lodged`: ballots that sites keep; `own_site`: the one whose word alone is enough here. Pure: the same input gives the same answer; nothing is remembered.
    """
    walk = _Walk(trust)
    try:
        walk.checkpoint(checkpoint)
        walk.consistency(consistency, have)
        walk.inclusion(entries, multi)
        walk.founding()
        walk.votes(least_version, receipts, known, whole)
        walk.sites()
        walk.witnesses(checkpoint, walk.lodged(lodged, own_site))
        return walk.verified()
    except Failed as failed:
        return failed.refusal


class _Walk(VotesWalk):
    """One verification: each method is a step and leaves what the next ones need."""

    def __init__(self, trust: Trust) -> None:
        super().__init__(trust.founding)
        self.trust = trust
        self.keys: dict[str, Verifier] = {}

    def checkpoint(self, data: bytes) -> None:
        self._begin("1 checkpoint", Code.SIGNATURE_INVALID)
        self.head = self._attempt(Checkpoint.open, data, self.trust.log)
        self._done(f"signed by journal {self.head.origin} at size {self.head.size}")

    def consistency(self, path: Sequence[bytes], have: Checkpoint | None) -> None:
        self._begin("2 consistency", Code.LOG_FORKED)
        if have is None:
            self._done("first contact: no earlier checkpoint to compare with")
            return
        if have.size > self.head.size:
            self._fail(
                f"the journal had {have.size} records when we last looked, now it shows {self.head.size}"
            )
        head = self.head
        self._attempt(merkle.verify_consistency, have.size, have.root, head.size, head.root, path)
        self._done(f"extends the journal we saw at size {have.size}")

    def inclusion(self, entries: Sequence[Entry], multi: Sequence[bytes] | None) -> None:
        self._begin("3 inclusion", Code.PROOF_INVALID)
        self.records = {}
        if multi is not None:
            leaves = [(index, merkle.leaf_hash(leaf)) for index, leaf, _ in entries]
            self._attempt(verify_multi, leaves, self.head.size, multi, self.head.root)
        last, at_ms = -1, 0
        for index, leaf, path in entries:
            if index <= last:
                self._fail(f"record {index} is shown after record {last}")
            if multi is None:
                hashed, head = merkle.leaf_hash(leaf), self.head
                self._attempt(merkle.verify_inclusion, hashed, index, head.size, path, head.root)
            record = self._attempt(Record.parse, leaf)
            if record.at_ms < at_ms:
                self._fail(f"record {index} is older than record {last}: the journal's clock ran backwards")
            self.records[index] = record
            last, at_ms = index, record.at_ms
        self._done(f"{len(self.records)} records stand in the journal")

    def founding(self) -> None:
        self._begin("4 founding", Code.CHARTER_UNPROVEN)
        charter = self.trust.founding
        text = charter_file.canonical(charter)
        digest = notes.digest(text)
        genesis = self.records.get(0)
        wanted = {"consortium": charter.consortium.name, "log_key": self.trust.log.vkey}
        if genesis is None or genesis.kind is not Kind.GENESIS or self._facts(0) != wanted:
            self._fail(
                f"record 0 does not begin the journal of {charter.consortium.name} with the key we trust"
            )
        self.charters = [index for index, record in self.records.items() if record.kind is Kind.CHARTER]
        self.history_at = self.charters[:1]
        first = self.records[self.charters[0]].body if self.charters else b""
        if first != text:
            self._fail(f"the journal's first charter is {notes.digest(first)}, our partner signed {digest}")
        signed = set()
        for record in self._of(Kind.FOUNDING):
            partner = check_founding(record.body, charter, digest)
            signed.add(partner if not isinstance(partner, Refusal) else self._fail(partner.message))
        lacking = [m.name for m in charter.members if m.name not in signed]
        if lacking:
            self._fail(f"no signature of {', '.join(lacking)} over charter {digest}")
        self._done(f"charter version 1 is signed by {', '.join(m.name for m in charter.members)}")

    def sites(self) -> None:
        self._begin("6 sites", Code.CHARTER_UNPROVEN)
        charter = self.history[-1]
        seen: set[Digest] = set()
        for record in self._of(Kind.SITE):
            found = check_delegation(record.body, charter)
            if isinstance(found, Refusal):
                self._fail(found.message)
            delegation, verifier = found
            text = notes.digest(delegation.compose().encode())
            if text not in seen:
                self.keys[delegation.site] = verifier
            seen.add(text)
        self._done(f"keys of {', '.join(self.keys) or 'no site'} are signed by their partners")

    def lodged(self, lodged: Sequence[LodgedBallot], own_site: str) -> str:
        """What is to be said of ballots that sites keep: each is among those of its vote."""
        self._begin("7 witnesses", Code.CHARTER_UNPROVEN)
        partners = {site.name: site.partner for site in self.history[-1].sites}
        quorum, kept = self.history[-1].witnesses.quorum, 0
        for done in self.executed:
            own = [one for one in lodged if one.ballot.proposal == done.opening.proposal]
            kept += len(own)
            for one in own:
                if self.shows(done.opening.proposal, one.digest) or not self.lawful(done, one.note):
                    continue
                ends_ms = ended_ms(done.opening, done.tally, lambda index: self.records[index].at_ms)
                window = (done.opening.opened_ms, ends_ms, done.tally.pause)
                witnesses = one.witnesses(self.keys, partners, *window)
                if convince(witnesses, quorum, own_site):
                    self._fail(
                        f"{one.ballot.voter}'s ballot on P-{done.opening.number:04d}, lodged in time with "
                        f"{', '.join(witnesses)}, is not among those of the vote: the members vote again"
                    )
        return f"; {kept} ballots that sites keep are in their votes" if kept else ""

    def witnesses(self, data: bytes, said: str) -> None:
        self._begin("7 witnesses", Code.PROOF_INVALID)
        charter = self.history[-1]
        quorum = charter.witnesses.quorum
        if not quorum:
            self._done(f"the charter asks for none{said}")
            return
        _, seen = self._attempt(lambda: cosigned(data, self.trust.log, counted(charter, self.keys)))
        there = ", ".join(seen) or "nobody"
        if len(seen) < quorum:
            self._fail(
                f"{len(seen)} of the {quorum} witnesses the charter asks for cosigned the checkpoint of size "
                f"{self.head.size} ({there}); missing are {lacking(charter, self.keys, seen)}",
                **{LACKS: quorum - len(seen)},
            )
        self._done(f"cosigned by {there}, the charter asks for {quorum}{said}")

    def verified(self) -> VerifiedCharter:
        charter = self.history[-1]
        return VerifiedCharter(
            charter=charter,
            digest=charter_file.digest(charter),
            version=charter.version,
            checkpoint=self.head,
            executed=tuple(self.executed),
            sites=self.keys,
            steps=tuple(self.steps),
        )
