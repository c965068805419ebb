"""The coordinator's side of a masked sum: collects what sites say, and learns the sum of the survivors' updates alone.

No IO and no clock: the caller takes in words as they come, says when it will wait no longer, and keeps every message
it took in; taken in again in any order within a step, they make the same `RoundMasking`. A refused word changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from commons.errors import Code, Refusal
from commons.masking.attempt import Attempt, ComplaintNote, KeysNote, RevealNote, SurvivorsNote, open_said
from commons.masking.derive import KEY_BYTES, share_commitments
from commons.masking.opening import opening_streams
from commons.masking.roster import (
    Deal,
    Deals,
    Dealt,
    Roster,
    below_threshold,
    read_deal,
    read_keys,
)
from commons.masking.streams import Stream, Unmasker
from commons.masking.survivors import Reveal, read_agreement, read_survivors, refused
from commons.notes import Signer, Verifier, digest
from commons.privacy.terms import SecAgg
from commons.words import Word


class Step(Word):
    """What an attempt waits for."""

    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    AGREEMENT = "agreement"
    REVEAL = "reveal"


@dataclass(frozen=True)
class Waiting:
    step: Step
    sites: tuple[str, ...]
    """Who has not answered, in order of name; nobody: the step can be closed."""


class RoundMasking:
    """One attempt. Each step: `take_*` for every word, then `close_*` once all are there or enough have waited."""

    def __init__(
        self,
        attempt: Attempt,
        *,
        terms: SecAgg,
        log: Signer,
        sites: Mapping[str, Verifier],
    ) -> None:
        """`terms`: the charter's. `sites`: those asked to take part, with their keys. `log`: signs the survivor list."""
        self._attempt = attempt
        self._log = log
        self._sites = sites
        self._terms = terms
        self._keys: dict[str, tuple[KeysNote, bytes]] = {}
        self._roster: Roster | None = None
        self._dealt: dict[str, tuple[Dealt, Deal]] = {}
        self._deals: Deals | None = None
        self._complaints: dict[str, str] = {}
        self._masked: set[str] = set()
        self._survivors: SurvivorsNote | None = None
        self._agreements: dict[str, bytes] = {}
        self._agreed = False
        self._shares: dict[str, list[int]] = {}

    @property
    def asked(self) -> tuple[str, ...]:
        """In order of name."""
        return tuple(sorted(self._sites))

    @property
    def waiting(self) -> Waiting:
        if self._roster is None:
            return _waiting(Step.KEYS, self._sites, self._keys)
        if self._deals is None:
            return _waiting(Step.SHARES, self._roster.names, self._dealt)
        if self._survivors is None:
            return _waiting(Step.MASKED, self._deals.names, self._masked | set(self._complaints))
        if not self._agreed:
            return _waiting(Step.AGREEMENT, self._survivors.survivors, self._agreements)
        return _waiting(Step.REVEAL, self._deals.names, self._shares)

    @property
    def complaints(self) -> Mapping[str, str]:
        """Who could not use what was dealt to it -> by whom. One of the two is at fault; both know."""
        return self._complaints

    def take_keys(self, data: bytes) -> Refusal | None:
        """A site's `KeysNote`. The same again changes nothing; after the roster is closed a new one is refused."""
        note = read_keys(data, attempt=self._attempt, sites=self._sites)
        if isinstance(note, Refusal):
            return note
        said = self._keys.get(note.site)
        if said is not None and said[0] == note:
            return None
        if said is not None or self._roster is not None:
            return Refusal(
                Code.MASK_KEYS_INVALID,
                f"{note.site} announces keys {'twice' if said else 'after the roster was closed'} in "
                f"{self._attempt}; it takes part again in the next attempt",
                {"site": note.site},
            )
        self._keys[note.site] = note, data
        return None

    def close_keys(self) -> tuple[bytes, ...] | Refusal:
        """The roster, to be shown to every site in it: all notes, in order of name."""
        notes = tuple(self._keys[name][1] for name in sorted(self._keys))
        if self._roster is None:
            roster = Roster.read(notes, attempt=self._attempt, sites=self._sites, terms=self._terms)
            if isinstance(roster, Refusal):
                return roster
            self._roster = roster
        return notes

    def take_deal(self, deal: Deal) -> Refusal | None:
        """What a site has dealt. The same again changes nothing; another, or a late one, is refused."""
        assert self._roster is not None, "the roster is closed before anybody deals to it"
        dealt = read_deal(deal, roster=self._roster, sites=self._sites)
        if isinstance(dealt, Refusal):
            return dealt
        said = self._dealt.get(dealt.note.site)
        if said is not None and said[0].note == dealt.note:
            return None
        if said is not None or self._deals is not None:
            return _shares_refused(
                f"{dealt.note.site} deals {'twice' if said else 'after the deals were closed'}",
                dealt.note.site,
            )
        self._dealt[dealt.note.site] = dealt, deal
        return None

    def close_deals(self) -> tuple[Deal, ...] | Refusal:
        """All deals, in order of name, to be shown to every dealer: with those, and nobody else, they mask."""
        assert self._roster is not None, "the roster is closed before anybody deals to it"
        deals = tuple(self._dealt[name][1] for name in sorted(self._dealt))
        if self._deals is None:
            found = Deals.read(deals, roster=self._roster, sites=self._sites)
            if isinstance(found, Refusal):
                return found
            self._deals = found
        return deals

    @property
    def deals(self) -> Deals | None:
        """Once closed; its digest stands in every masked update."""
        return self._deals

    def take_complaint(self, data: bytes) -> Refusal | None:
        """A site's `ComplaintNote`: it masks nothing and counts as dropped; whoever it accuses is named by `complaints`."""
        assert self._deals is not None, "complaints are about deals"
        note = open_said(
            ComplaintNote, data, attempt=self._attempt, sites=self._sites, code=Code.MASK_SHARES_INVALID
        )
        if isinstance(note, Refusal):
            return note
        named = {note.site, note.accused}
        if note.deals != self._deals.digest or len(named) < 2 or not named <= set(self._deals.names):
            return _shares_refused(f"{note.site} complains of what was not dealt to it", note.site)
        self._complaints.setdefault(note.site, note.accused)
        return None

    def take_masked(self, site: str, deals: str) -> Refusal | None:
        """A site's whole masked update is kept, and it says that it was masked under these deals (their digest)."""
        assert self._deals is not None, "sites mask under closed deals"
        if site not in self._deals.names or deals != self._deals.digest:
            return _shares_refused(f"{site} masked under other deals than those of {self._attempt}", site)
        if self._survivors is not None and site not in self._survivors.survivors:
            return refused(f"the masked update of {site} comes after the survivor list", site)
        self._masked.add(site)
        return None

    def close_masked(self, kept: bytes | None = None) -> bytes | Refusal:
        """The signed survivor list, once and for all. Keep it durably before anybody is shown it.

        `kept`: the list that was kept before a restart; it stands, whoever came later. Asked again, the answer is the
        same.
        """
        assert self._deals is not None, "sites mask under closed deals"
        if self._survivors is None:
            deals, log = self._deals, self._log.verifier
            found = self._listed(deals) if kept is None else read_survivors(kept, deals=deals, log=log)
            if isinstance(found, Refusal):
                return found
            self._survivors = found
        return self._log.sign(self._survivors.text)

    def _listed(self, deals: Deals) -> SurvivorsNote | Refusal:
        there = tuple(n for n in deals.names if n in self._masked and n not in self._complaints)
        if len(there) < deals.roster.crowd:
            return below_threshold("handed in a masked update", there, deals.roster, deals.roster.crowd)
        dropped = tuple(name for name in deals.names if name not in there)
        return SurvivorsNote(of=self._attempt, deals=deals.digest, survivors=there, dropped=dropped)

    def take_agreement(self, data: bytes) -> Refusal | None:
        """A survivor's `AgreementNote`."""
        assert self._survivors is not None, "sites agree to a list that was shown"
        said = read_agreement(data, survivors=self._survivors, sites=self._sites)
        if isinstance(said, Refusal):
            return said
        self._agreements.setdefault(said.site, data)
        return None

    def close_agreements(self) -> tuple[bytes, ...] | Refusal:
        """The agreements, in order of name, to be shown to every dealer with the list; at least as many as the threshold."""
        assert self._deals is not None and self._survivors is not None, "sites agree to a list that was shown"
        if len(self._agreements) < self._deals.roster.threshold:
            return below_threshold(
                "agreed to the survivor list",
                sorted(self._agreements),
                self._deals.roster,
                self._deals.roster.threshold,
            )
        self._agreed = True
        return tuple(self._agreements[name] for name in sorted(self._agreements))

    def take_reveal(self, reveal: Reveal) -> Refusal | None:
        """A site's shares. Each must be the one its dealer committed to; else the site is named and none of them counts."""
        assert self._deals is not None and self._survivors is not None, "sites reveal under a list"
        note = open_said(
            RevealNote, reveal.note, attempt=self._attempt, sites=self._sites, code=Code.MASK_SHARES_INVALID
        )
        if isinstance(note, Refusal):
            return note
        site, names = note.site, self._deals.names
        if site not in names or note.survivors != self._survivors.digest:
            return _shares_refused(f"{site} reveals under another survivor list", site)
        if digest(reveal.shares) != note.shares or len(reveal.shares) != KEY_BYTES * len(names):
            return _shares_refused(f"{site} reveals other shares than it signed", site)
        shares = [
            int.from_bytes(reveal.shares[start : start + KEY_BYTES], "big")
            for start in range(0, len(reveal.shares), KEY_BYTES)
        ]
        for dealer, share in zip(names, shares, strict=True):
            survived = dealer in self._survivors.survivors
            said = share_commitments((share, share), self._attempt, dealer, site)[survived]
            if said != self._deals.dealt[dealer].commitments(site)[survived]:
                return _shares_refused(f"{site} reveals a share that {dealer} has not dealt to it", site)
        self._shares.setdefault(site, shares)
        return None

    def close_reveals(self) -> tuple[Stream, ...] | Refusal:
        """What is to be taken from the sum of the survivors' words: the masks of an `Unmasker`, one for each thread.

        Refused below the threshold, and when a dealer's shares do not make the secret it announced: it is named, and
        the attempt is lost.
        """
        assert self._deals is not None and self._survivors is not None, "sites reveal under a list"
        if len(self._shares) < self._deals.roster.threshold:
            return below_threshold(
                "revealed their shares",
                sorted(self._shares),
                self._deals.roster,
                self._deals.roster.threshold,
            )
        return opening_streams(self._deals, self._survivors, self._shares)

    def unmasker(self) -> Unmasker | Refusal:
        """`close_reveals`, ready to use."""
        streams = self.close_reveals()
        return streams if isinstance(streams, Refusal) else Unmasker(streams)


def _waiting(step: Step, asked: Iterable[str], there: Collection[str]) -> Waiting:
    return Waiting(step, tuple(sorted(name for name in asked if name not in there)))


def _shares_refused(message: str, site: str) -> Refusal:
    return Refusal(
        Code.MASK_SHARES_INVALID,
        f"{message}; the coordinator goes on without {site}'s word",
        {"site": site},
    )
