"""Who takes part in an attempt: the roster of announced keys, and what everybody has dealt to everybody.

Both are read in one way by coordinator and sites, from signed notes alone; whoever relays them can leave something
out, but change nothing. What is wrong is a Refusal that names the site whose word it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from commons.errors import Code, Refusal
from commons.masking.attempt import Attempt, KeysNote, SharesNote, digest_of, open_said
from commons.masking.derive import KEY_BYTES, SEALED_BYTES, agrees
from commons.names import Digest
from commons.notes import Verifier, digest
from commons.privacy.terms import SecAgg

SITES_MAX = 64

_COMMITMENTS_BYTES = 2 * 32


@dataclass(frozen=True)
class Strength:
    """What a roster of `sites` withstands."""

    sites: int
    threshold: int
    """Sites it takes to agree on a survivor list and to reveal under it: more than two thirds."""
    crowd: int
    """Updates that the sum is taken of, at the least."""
    dropouts: int
    """Sites that may be lost after they dealt shares, and the sum is still found."""
    colluders: int
    """Sites that may side with the coordinator: it still learns no sum of fewer than two of the others' updates."""


def strength(terms: SecAgg, sites: int) -> Strength:
    """What a roster of so many sites withstands under a charter's terms.

    Two lists would need ``2 * threshold - sites`` sites that agree to both, and no honest site does. A list has at
    least `crowd` survivors, so with `colluders` among them two honest ones are left.
    """
    threshold = terms.needed(sites)
    crowd = max(threshold, terms.minimum)
    colluders = min(2 * threshold - sites - 1, threshold - 1, crowd - 2)
    return Strength(sites, threshold, crowd, sites - crowd, colluders)


@dataclass(frozen=True)
class Roster:
    """The checked public keys of an attempt, in order of site name."""

    attempt: Attempt
    keys: Mapping[str, KeysNote]
    strength: Strength
    digest: Digest

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.keys)

    @property
    def threshold(self) -> int:
        return self.strength.threshold

    @property
    def crowd(self) -> int:
        return self.strength.crowd

    def number(self, site: str) -> int:
        """Of the site's shares, from 1."""
        return self.names.index(site) + 1

    def channel(self, site: str) -> bytes:
        return bytes.fromhex(self.keys[site].channel)

    def mask(self, site: str) -> bytes:
        return bytes.fromhex(self.keys[site].mask)

    @classmethod
    def read(
        cls, notes: Sequence[bytes], *, attempt: Attempt, sites: Mapping[str, Verifier], terms: SecAgg
    ) -> Roster | Refusal:
        """A roster of different sites with different, usable keys; enough of them for what the charter's terms ask for."""
        if len(notes) > SITES_MAX:
            return _keys_invalid(f"{len(notes)} sites, at most {SITES_MAX} mask together")
        found: dict[str, KeysNote] = {}
        for data in notes:
            note = read_keys(data, attempt=attempt, sites=sites)
            if isinstance(note, Refusal):
                return note
            if note.site in found:
                return _keys_invalid(f"{note.site} stands twice in the roster", note.site)
            found[note.site] = note
        holds = strength(terms, len(found))
        if len(found) < holds.crowd:
            return Refusal(
                Code.MASK_ROSTER_TOO_SMALL,
                f"{len(found)} sites would mask together in {attempt}, the charter asks for {holds.crowd}: "
                "a smaller crowd hides nobody; wait for more sites or vote for other privacy terms",
                {"sites": sorted(found), "needed": holds.crowd},
            )
        ordered = {name: found[name] for name in sorted(found)}
        owners = sorted((key, name) for name, note in ordered.items() for key in (note.channel, note.mask))
        for (key, one), (other_key, other) in pairwise(owners):
            if key == other_key:
                return _keys_invalid(f"{one} and {other} announce the same key", other)
        said = [(name, note.digest) for name, note in ordered.items()]
        return cls(attempt, ordered, holds, digest_of("hansa-mask-roster/v1", said))


def read_keys(data: bytes, *, attempt: Attempt, sites: Mapping[str, Verifier]) -> KeysNote | Refusal:
    """One site's announcement: signed by its key, of this attempt, with two keys that can be agreed with."""
    note = open_said(KeysNote, data, attempt=attempt, sites=sites, code=Code.MASK_KEYS_INVALID)
    if isinstance(note, Refusal):
        return note
    for name, text in (("channel", note.channel), ("mask", note.mask)):
        public = _hex_key(text)
        if public is None or not agrees(public):
            return _keys_invalid(f"the {name} key of {note.site} is no X25519 key of full order", note.site)
    return note


@dataclass(frozen=True)
class Deal:
    """What a site deals, as it travels."""

    note: bytes
    """Signed `SharesNote`."""
    bundle: bytes
    """For each site of the roster two commitments of 32 bytes (mask key, seed), in order of name; then for each but
    the dealer 80 bytes that only that site can open, in the same order."""


@dataclass(frozen=True)
class Dealt:
    """A checked deal: signed, whole and of this roster. Whether the shares are right is for each receiver to see."""

    note: SharesNote
    roster: Roster
    bundle: bytes

    def commitments(self, site: str) -> tuple[Digest, Digest]:
        """To the shares of `site`: of the dealer's mask key, of its seed."""
        start = _COMMITMENTS_BYTES * (self.roster.number(site) - 1)
        both = self.bundle[start : start + _COMMITMENTS_BYTES]
        return _digest(both[:32]), _digest(both[32:])

    def sealed(self, site: str) -> bytes:
        """The shares of `site`, which is not the dealer."""
        others = [name for name in self.roster.names if name != self.note.site]
        start = _COMMITMENTS_BYTES * len(self.roster.names) + SEALED_BYTES * others.index(site)
        return self.bundle[start : start + SEALED_BYTES]


@dataclass(frozen=True)
class Deals:
    """Everybody who has dealt, in order of name: with them, and with nobody else, a site masks."""

    roster: Roster
    dealt: Mapping[str, Dealt]
    digest: Digest

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.dealt)

    @classmethod
    def read(cls, deals: Sequence[Deal], *, roster: Roster, sites: Mapping[str, Verifier]) -> Deals | Refusal:
        """Deals to this roster, each by another site of it, enough for a crowd."""
        found: dict[str, Dealt] = {}
        for deal in deals:
            dealt = read_deal(deal, roster=roster, sites=sites)
            if isinstance(dealt, Refusal):
                return dealt
            if dealt.note.site in found:
                return _shares_invalid(f"{dealt.note.site} has dealt twice", dealt.note.site)
            found[dealt.note.site] = dealt
        if len(found) < roster.crowd:
            return below_threshold("dealt shares", sorted(found), roster, roster.crowd)
        ordered = {name: found[name] for name in sorted(found)}
        said = [(name, dealt.note.digest) for name, dealt in ordered.items()]
        return cls(roster, ordered, digest_of("hansa-mask-deals/v1", said))


def read_deal(deal: Deal, *, roster: Roster, sites: Mapping[str, Verifier]) -> Dealt | Refusal:
    """One site's deal, as far as everybody can check it."""
    note = open_said(
        SharesNote, deal.note, attempt=roster.attempt, sites=sites, code=Code.MASK_SHARES_INVALID
    )
    if isinstance(note, Refusal):
        return note
    count = len(roster.names)
    length = _COMMITMENTS_BYTES * count + SEALED_BYTES * (count - 1)
    for wrong, what in (
        (note.site not in roster.keys, "is not in the roster"),
        (note.roster != roster.digest, "dealt to another roster"),
        (note.threshold != roster.threshold, f"dealt for {note.threshold} sites, not {roster.threshold}"),
        (len(deal.bundle) != length, f"dealt {len(deal.bundle)} bytes, not {length}"),
        (digest(deal.bundle) != note.bundle, "signed another bundle"),
    ):
        if wrong:
            return _shares_invalid(f"{note.site} {what}", note.site)
    return Dealt(note, roster, deal.bundle)


def below_threshold(what: str, there: Sequence[str], roster: Roster, needed: int) -> Refusal:
    """Too few are left: this attempt finds no sum."""
    return Refusal(
        Code.MASK_BELOW_THRESHOLD,
        f"{len(there)} of {len(roster.names)} sites have {what}, {needed} must; "
        "the coordinator waits for more or begins another attempt without the missing",
        {
            "sites": list(there),
            "missing": [n for n in roster.names if n not in there],
            "needed": needed,
        },
    )


def _hex_key(text: str) -> bytes | None:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        return None
    return raw if len(raw) == KEY_BYTES and raw.hex() == text else None


def _digest(raw: bytes) -> Digest:
    return Digest(f"sha256:{raw.hex()}")


def _keys_invalid(message: str, site: str | None = None) -> Refusal:
    return Refusal(
        Code.MASK_KEYS_INVALID,
        f"{message}; begin another attempt with keys that each site announced itself",
        {"site": site} if site else {},
    )


def _shares_invalid(message: str, site: str) -> Refusal:
    return Refusal(
        Code.MASK_SHARES_INVALID,
        f"{message}; begin another attempt without {site}",
        {"site": site},
    )
