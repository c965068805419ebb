"""Ballots lodged with sites, so that a coordinator that takes no notice of one is found out.

A receipt proves a ballot that the coordinator took. One that it would not take is lodged: a site hands it in once more, keeps
it, and signs that it did. If the vote is carried out and the ballot is not among those shown, the tally is not the members':
the site refuses the charter that came of it, and the ballot with the words of several partners' sites proves it to others.

Owns the notes, the file that travels, and which lodged ballots a vote must show. A ballot lodged in the last minutes proves
nothing: it may have been on its way when voting ended, and clocks differ.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from typing_extensions import Self

from commons.ballots import Ballot
from commons.names import Digest
from commons.notes import NoteError, Verifier, parse
from commons.signed import open_signed, text_digest
from commons.work import Words

FORMAT = "hansa-lodged-ballot/v1"
MARGIN_MS = 300_000
"""A ballot has to be lodged so long after voting began or went on, and before it stopped or ended."""
PARTNERS_LEAST = 2
"""Whose sites' words it takes at the least to convince others."""
WITNESSED_MAX = 64
LODGED_BYTES_MAX = 2**18


@dataclass(frozen=True, kw_only=True)
class Lodged(Words):
    """A site keeps this ballot and has handed it to the coordinator."""

    KIND = "hansa-lodged/v1"
    consortium: str
    proposal: str
    voter: str
    ballot: str
    """Digest of its text."""
    site: str
    at_ms: int
    """By the site's clock."""


@dataclass(frozen=True)
class LodgedBallot:
    note: bytes
    """The signed ballot."""
    words: tuple[bytes, ...]
    """What sites say of it: signed `Lodged` notes."""

    @property
    def ballot(self) -> Ballot:
        """Raises NoteError."""
        return Ballot.from_note(parse(self.note))

    @property
    def digest(self) -> Digest:
        """Of the ballot's text. Raises NoteError."""
        return text_digest(parse(self.note))

    def witnesses(
        self,
        keys: Mapping[str, Verifier],
        partners: Mapping[str, str],
        begins_ms: int,
        ends_ms: int,
        pause: tuple[int, int] | None = None,
    ) -> dict[str, str]:
        """Site -> its partner, for each that signed to have had it while the vote took ballots. `keys`, `partners`: of the
        enrolled sites."""
        found = {}
        since_ms, until_ms = pause or (ends_ms, ends_ms)
        for words in self.words:
            try:
                note = parse(words)
                said = Lodged.from_note(note)
            except NoteError:
                continue
            in_time = begins_ms + MARGIN_MS <= said.at_ms < ends_ms - MARGIN_MS
            in_time &= not since_ms - MARGIN_MS <= said.at_ms < until_ms + MARGIN_MS
            known = said.site in keys and said.site in partners
            if (
                known
                and in_time
                and said.ballot == self.digest
                and not open_signed(note, keys[said.site], said.site)
            ):
                found[said.site] = partners[said.site]
        return found

    def dump(self) -> bytes:
        words = [note.decode() for note in self.words]
        return json.dumps(
            {"format": FORMAT, "ballot": self.note.decode(), "words": words}, ensure_ascii=False
        ).encode()

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Raises ValueError when it is none."""
        if len(data) > LODGED_BYTES_MAX:
            raise ValueError(f"file of {len(data)} bytes, at most {LODGED_BYTES_MAX}")
        try:
            found = json.loads(data)
            if found["format"] != FORMAT or len(found["words"]) > WITNESSED_MAX:
                raise ValueError(f"not a {FORMAT} file")
            lodged = cls(found["ballot"].encode(), tuple(note.encode() for note in found["words"]))
            lodged.ballot  # noqa: B018 - raises when it is none
        except (AttributeError, KeyError, TypeError, RecursionError, NoteError) as error:
            raise ValueError(f"not a {FORMAT} file: {error}") from error
        return lodged

    @classmethod
    def together(cls, found: Iterable[Self]) -> list[Self]:
        """One for each ballot, with all that sites say of it. Raises NoteError."""
        words: dict[Digest, tuple[bytes, list[bytes]]] = {}
        for lodged in found:
            words.setdefault(lodged.digest, (lodged.note, []))[1].extend(lodged.words)
        return [cls(note, tuple(dict.fromkeys(said))) for note, said in words.values()]


def convince(witnesses: Mapping[str, str], quorum: int, own_site: str) -> bool:
    """Whether these sites' words are enough: one's own is; of others as many partners' as the charter asks witnesses for."""
    return own_site in witnesses or len(set(witnesses.values())) >= max(PARTNERS_LEAST, quorum)
