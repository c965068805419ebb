"""Ballots that members lodged with this site: kept, handed to the coordinator, and asked for whenever votes are recounted.

Owns the folder. A site that finds one missing from a vote does not train on what came of it, until its operator, once the
members agreed, takes the ballot out of the folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from commons.ballots import Ballot
from commons.charter import Charter
from commons.errors import Code, HansaError, Refusal, Refused, Unreachable
from commons.identity import write_file
from commons.lodging import Lodged, LodgedBallot
from commons.notes import NoteError, Signer, parse
from commons.signed import text_digest

KEPT_MAX = 1024

Submit = Callable[[bytes], int]
"""Hands a note to the coordinator; its journal index. Raises Refused, Unreachable."""


class LodgedFolder:
    """One file for each ballot, by its digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ballots(self) -> list[LodgedBallot]:
        """Raises HansaError naming a file that cannot be read."""
        return [_load(path) for path in sorted(self._folder.glob("*.json"))]

    def keep(self, lodged: LodgedBallot) -> Path:
        """Durable when it returns. Raises HansaError when the folder is full."""
        path = self._folder / f"{lodged.digest.removeprefix('sha256:')[:32]}.json"
        if not path.exists() and len(list(self._folder.glob("*.json"))) >= KEPT_MAX:
            raise HansaError(
                f"{self._folder} holds {KEPT_MAX} ballots: take out those of votes that are over"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        write_file(path, lodged.dump())
        return path


def lodge(
    note: bytes, charter: Charter, signer: Signer, folder: LodgedFolder, submit: Submit, now_ms: int
) -> tuple[LodgedBallot, str]:
    """The ballot with this site's word, kept before anything is sent; and what the coordinator said to it.

    Raises Refused for what is no ballot of a member of `charter`. What else makes it count is for those who recount the vote.
    """
    try:
        parsed = parse(note)
        ballot = Ballot.from_note(parsed)
    except NoteError as error:
        raise Refused(Refusal(Code.NOTE_MALFORMED, f"the ballot cannot be read: {error}")) from None
    if ballot.consortium != charter.consortium.name or charter.member(ballot.voter) is None:
        message = f"{ballot.voter!r} of {ballot.consortium!r} is no member of {charter.consortium.name}"
        raise Refused(Refusal(Code.NOT_AUTHORISED, message))
    words = Lodged(
        consortium=ballot.consortium,
        proposal=ballot.proposal,
        voter=ballot.voter,
        ballot=text_digest(parsed),
        site=signer.name.partition("/")[2],
        at_ms=now_ms,
    )
    lodged = LodgedBallot(note, (signer.sign(words.text),))
    folder.keep(lodged)
    try:
        said = f"the coordinator has it as journal record {submit(note)}"
        submit(lodged.words[0])
    except Refused as refused:
        said = f"the coordinator refuses it: {refused}"
    except Unreachable as unreachable:
        said = f"the coordinator does not answer: {unreachable}"
    return lodged, said


def _load(path: Path) -> LodgedBallot:
    try:
        return LodgedBallot.load(path.read_bytes())
    except (OSError, ValueError) as error:
        raise HansaError(
            f"{path} cannot be read ({error}); restore it, or take it out of the folder"
        ) from error
