"""The auditor's reading of law: who founded the consortium, whose keys speak, who vouches for which charter.

Every signature is checked with the key that was in force. What was voted into the charter is `governance.fsck_votes`' to say.
"""

from __future__ import annotations

from typing import Any

from commons import charter_file, notes
from commons.anchors import check_anchor
from commons.charter import Charter, Consortium
from commons.errors import Refusal
from commons.founding import check_delegation, check_founding
from commons.notes import Note, Verifier
from commons.signed import open_signed, text_digest
from governance.fsck_findings import Findings, Rule


class Law:
    """Judges GENESIS, founding CHARTER, FOUNDING, SITE and ANCHOR records."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.history: list[Charter] = []
        self.log: Verifier | None = None
        """The key that the founders put into the charter."""
        self._name = ""
        self._keys: dict[str, Verifier] = {}
        self._notes: set[str] = set()
        self._founders: set[str] = set()
        self._founded = False

    @property
    def charter(self) -> Charter:
        """The one in force. Raises ValueError before there is one."""
        if not self.history:
            raise ValueError("it stands before the founding charter")
        return self.history[-1]

    def version(self, number: int) -> Charter:
        """Raises ValueError when there is no such version yet."""
        found = next((c for c in self.history if c.version == number), None)
        if found is None:
            raise ValueError(f"there is no charter version {number} yet")
        return found

    def key(self, site: str) -> Verifier | None:
        """The key that speaks for the site now."""
        return self._keys.get(site)

    def signed(self, index: int, note: Note, verifier: Verifier | None, owner: str) -> bool:
        """Whether the owner's key in force signed the note, and nobody else."""
        if verifier is None:
            self._findings.add(Rule.SIGNATURE, index, f"is said to be by {owner}, who has no key here")
            return False
        wrong = open_signed(note, verifier, owner)
        if wrong is not None:
            self._findings.add(Rule.SIGNATURE, index, f"is forged: {wrong.message}")
        return wrong is None

    def by_member(self, index: int, note: Note, member: str) -> bool:
        """The same for a member of the charter in force."""
        found = self.charter.member(member)
        return self.signed(index, note, Verifier.from_vkey(found.key) if found else None, member)

    def _check_founders(self, index: int, where: str) -> None:
        self._founded = True
        lacking = (
            [m.name for m in self.history[0].members if m.name not in self._founders]
            if self.history
            else ["all"]
        )
        what = f"{where} {', '.join(lacking)} had not signed the founding charter"
        self._findings.require(not lacking, Rule.FOUNDING, index, what)

    def _genesis(self, index: int, facts: dict[str, Any]) -> None:
        if index == 0:
            self.log, self._name = Verifier.from_vkey(facts["log_key"]), facts["consortium"]

    def _found(self, index: int, charter: Charter) -> None:
        need, wrong = self._findings.require, charter_file.problems(charter)
        named = self.log is not None and charter.consortium == Consortium(
            name=self._name, log_key=self.log.vkey
        )
        need(not wrong, Rule.FOUNDING, index, f"founds on a charter that is none: {'; '.join(wrong)}")
        need(charter.version == 1, Rule.FOUNDING, index, f"founds on version {charter.version}")
        what = "names another consortium or log key than the journal's first record"
        need(named, Rule.FOUNDING, index, what)

    def _founding(self, index: int, body: bytes) -> None:
        if len(self.history) != 1:
            self._findings.add(Rule.FOUNDING, index, "is a founder's signature outside the founding")
            return
        partner = check_founding(body, self.charter, charter_file.digest(self.charter))
        if isinstance(partner, Refusal):
            self._findings.add(Rule.SIGNATURE, index, f"is no founder's signature: {partner.message}")
        else:
            again = partner in self._founders
            self._findings.require(not again, Rule.FOUNDING, index, f"is a second signature of {partner}")
            self._founders.add(partner)

    def _site(self, index: int, body: bytes) -> None:
        found = check_delegation(body, self.charter)
        if isinstance(found, Refusal):
            self._findings.add(Rule.SIGNATURE, index, f"gives a site keys unlawfully: {found.message}")
            return
        delegation, verifier = found
        self.once(
            index, notes.parse(body), Rule.SIGNATURE, f"brings replaced keys of site {delegation.site} back"
        )
        self._keys[delegation.site] = verifier

    def _anchor(self, index: int, body: bytes) -> None:
        note = notes.parse(body)
        found = check_anchor(note, self.charter)
        if isinstance(found, Refusal):
            self._findings.add(Rule.SIGNATURE, index, f"vouches unlawfully for a charter: {found.message}")
            return
        self.once(index, note, Rule.CHARTER, "is an anchor that stood before")
        held = charter_file.digest(self.version(found.charter_version))
        what = f"vouches for another charter version {found.charter_version} than the journal has"
        self._findings.require(found.charter == held, Rule.CHARTER, index, what)

    def once(self, index: int, note: Note, rule: Rule, what: str) -> None:
        """The same words, whoever's bytes carry them, stand in a journal once."""
        words = text_digest(note)
        self._findings.require(words not in self._notes, rule, index, what)
        self._notes.add(words)
