"""Who is in the consortium, under which charter, and which keys speak for its sites.

A view of the journal: folds CHARTER, FOUNDING and SITE records and decides what may be added to them.
Knows nothing of budgets or of how a vote came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from commons import charter_file, notes
from commons.anchors import Anchor, check_anchor
from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.founding import Delegation, check_delegation, check_founding
from commons.names import Digest
from commons.notes import Note, NoteError, Verifier
from commons.records import Kind, Record, fact
from commons.signed import text_digest


class Members:
    """Membership as the journal has it. Changes only by `apply`; the `decide_` methods change nothing."""

    def __init__(self) -> None:
        self._charters: dict[int, Charter] = {}
        self._digests: dict[int, Digest] = {}
        self._delegations: dict[str, tuple[int, Delegation]] = {}
        self._seen: dict[Digest, int] = {}
        self.basis: list[int] = []
        """Journal indexes of what every proof of the charter needs: genesis, founders, sites' keys."""
        self.charter_at: dict[int, int] = {}
        """Charter version -> journal index."""
        self.anchors: dict[int, dict[str, int]] = {}
        """Charter version -> member -> journal index of its anchor."""

    def apply(self, index: int, record: Record) -> None:
        match record.kind:
            case Kind.CHARTER:
                charter = charter_file.from_canonical(record.body)
                self._charters[charter.version] = charter
                self._digests[charter.version] = notes.digest(record.body)
                self.charter_at[charter.version] = index
            case Kind.ANCHOR:
                note = notes.parse(record.body)
                anchor = Anchor.from_note(note)
                self.anchors.setdefault(anchor.charter_version, {})[anchor.member] = index
                self._seen[text_digest(note)] = index
            case Kind.SITE:
                note = notes.parse(record.body)
                delegation = Delegation.from_note(note)
                self._delegations[delegation.site] = (index, delegation)
                self._seen[text_digest(note)] = index
                self.basis.append(index)
            case Kind.GENESIS | Kind.FOUNDING:
                self.basis.append(index)
            case _:
                pass

    @property
    def founded(self) -> bool:
        return bool(self._charters)

    @property
    def charter(self) -> Charter:
        """The charter in force. Only once `founded`."""
        return self._charters[max(self._charters)]

    @property
    def digest(self) -> Digest:
        """Digest of the charter in force."""
        return self._digests[max(self._digests)]

    @property
    def charters(self) -> Mapping[int, Charter]:
        """Every version so far."""
        return MappingProxyType(self._charters)

    @property
    def enrolled(self) -> tuple[str, ...]:
        """Sites of the charter in force that have handed in their keys, in charter order."""
        return (
            tuple(s.name for s in self.charter.sites if s.name in self._delegations) if self.founded else ()
        )

    def delegation(self, site: str) -> Delegation | None:
        """The site's keys as its partner last signed them."""
        held = self._delegations.get(site)
        return held[1] if held else None

    def site_key(self, site: str) -> Verifier | None:
        """The key that signs the site's updates and usage."""
        delegation = self.delegation(site)
        return Verifier.from_vkey(delegation.key) if delegation else None

    def find(self, note: bytes) -> int | None:
        """Journal index of an anchor or delegation with the very same text, if it was recorded before."""
        try:
            return self._seen.get(text_digest(notes.parse(note)))
        except NoteError:
            return None

    def decide_anchor(self, note: Note, now_ms: int) -> list[Record] | Refusal:
        """The ANCHOR record of a member that vouches for a charter version; [] for a repeat."""
        anchor = check_anchor(note, self.charter)
        if isinstance(anchor, Refusal):
            return anchor
        if self._digests.get(anchor.charter_version) != anchor.charter:
            return Refusal(
                Code.CHARTER_INVALID,
                f"charter version {anchor.charter_version} is {self._digests.get(anchor.charter_version, 'not there')}, the "
                f"anchor says {anchor.charter}; {anchor.member} has seen another journal and shows what it was shown",
            )
        return [] if text_digest(note) in self._seen else [Record(Kind.ANCHOR, now_ms, note.data)]

    def decide_found(
        self, charter: Charter, founding: Sequence[bytes], log_key: str, now_ms: int
    ) -> list[Record] | Refusal:
        """The first records: GENESIS, CHARTER, one FOUNDING per member in charter order.

        Founding the same charter again gives [], another one a refusal. Every member must have signed.
        """
        digest = charter_file.digest(charter)
        if self.founded:
            if self._digests.get(1) == digest:
                return []
            return Refusal(
                Code.CHARTER_INVALID,
                f"this journal was founded on charter {self._digests[1]}, this one is {digest}: "
                "start the coordinator with the founding charter, or with a new home",
            )
        wrong = charter_file.problems(charter)
        if charter.version != 1:
            wrong.append(f"version: a consortium is founded on version 1, this is {charter.version}")
        if charter.features:
            wrong.append("features: are switched on by votes, so version 1 has none")
        if charter.consortium.log_key != log_key:
            wrong.append(
                f"consortium.log_key: the coordinator signs with {log_key}, the charter names another; "
                "the founders put the coordinator's key into the charter and sign it"
            )
        if wrong:
            return Refusal(Code.CHARTER_INVALID, "; ".join(wrong))
        signed: dict[str, bytes] = {}
        for data in founding:
            partner = check_founding(data, charter, digest)
            if isinstance(partner, Refusal):
                return partner
            signed.setdefault(partner, data)
        lacking = [m.name for m in charter.members if m.name not in signed]
        if lacking:
            return Refusal(
                Code.CHARTER_INVALID,
                f"{', '.join(lacking)} of {len(charter.members)} members still have to sign charter {digest}",
                {"lacking": lacking},
            )
        return [
            fact(Kind.GENESIS, now_ms, consortium=charter.consortium.name, log_key=log_key),
            Record(Kind.CHARTER, now_ms, charter_file.canonical(charter)),
            *(Record(Kind.FOUNDING, now_ms, signed[m.name]) for m in charter.members),
        ]

    def decide_enrol_site(self, note: bytes, now_ms: int) -> list[Record] | Refusal:
        """SITE record for a delegation signed by the site's partner.

        The delegation in force gives []. A newer one replaces the site's keys; an older one, handed in
        again, is refused: it must not bring back keys that were replaced.
        """
        found = check_delegation(note, self.charter)
        if isinstance(found, Refusal):
            return found
        delegation, _ = found
        held = self._delegations.get(delegation.site)
        if held and held[1] == delegation:
            return []
        if text_digest(notes.parse(note)) in self._seen:
            return Refusal(
                Code.NOT_AUTHORISED,
                f"these keys of site {delegation.site} were replaced by newer ones; {delegation.partner} makes a "
                "new key and signs it",
            )
        return [Record(Kind.SITE, now_ms, note)]
