"""The survivor list: what makes one fair, who has agreed to it, and which share of a peer it asks for.

Of a survivor the seed of its own mask is found again, of a dropped site its mask key; of nobody both. A list that is
agreed to by more than two thirds of a roster is the only one that can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from commons.errors import Code, Refusal
from commons.masking.attempt import AgreementNote, SurvivorsNote, open_said
from commons.masking.roster import Deals, below_threshold
from commons.notes import NoteError, Verifier, open_note


@dataclass(frozen=True)
class Reveal:
    """What a site reveals, as it travels."""

    note: bytes
    """Signed `RevealNote`."""
    shares: bytes
    """32 bytes for each dealer, in order of name: of its seed when it survived, else of its mask key."""


def read_survivors(data: bytes, *, deals: Deals, log: Verifier) -> SurvivorsNote | Refusal:
    """A list by the coordinator's log key that puts every dealer on one side, and a crowd among the survivors."""
    attempt, roster = deals.roster.attempt, deals.roster
    try:
        said = SurvivorsNote.from_note(open_note(data, [log]))
    except NoteError as wrong:
        return refused(f"no survivor list by the coordinator: {wrong}")
    if said.of != attempt:
        return refused(f"a survivor list of {said.of} under {said.of.charter}, this is {attempt}")
    if said.deals != deals.digest:
        return refused(f"a survivor list over other deals than the ones masked under in {attempt}")
    both = [name for name in said.survivors if name in said.dropped]
    if both:
        return refused(f"{both[0]} stands on both sides of the survivor list")
    if sorted(said.survivors + said.dropped) != list(deals.names):
        return refused("the survivor list does not name every site that dealt shares, each once")
    if said.survivors != tuple(sorted(said.survivors)) or said.dropped != tuple(sorted(said.dropped)):
        return refused("the survivor list is not in order of name")
    if len(said.survivors) < roster.crowd:
        return below_threshold("survived", said.survivors, roster, roster.crowd)
    return said


def read_agreement(
    data: bytes, *, survivors: SurvivorsNote, sites: Mapping[str, Verifier]
) -> AgreementNote | Refusal:
    """One survivor's word that it saw this list."""
    said = open_said(AgreementNote, data, attempt=survivors.of, sites=sites, code=Code.MASK_SURVIVORS_REFUSED)
    if isinstance(said, Refusal):
        return said
    if said.site not in survivors.survivors:
        return refused(f"{said.site} agrees to a survivor list without being a survivor")
    if said.survivors != survivors.digest:
        return refused(f"{said.site} has agreed to another survivor list", said.site)
    return said


def check_agreed(
    agreements: Sequence[bytes], *, survivors: SurvivorsNote, deals: Deals, sites: Mapping[str, Verifier]
) -> Refusal | None:
    """Whether as many survivors as the threshold agreed to this list; then no other list of the attempt can be agreed to."""
    agreed = set[str]()
    for data in agreements:
        said = read_agreement(data, survivors=survivors, sites=sites)
        if isinstance(said, Refusal):
            return said
        agreed.add(said.site)
    if len(agreed) < deals.roster.threshold:
        return below_threshold(
            "agreed to the survivor list", sorted(agreed), deals.roster, deals.roster.threshold
        )
    return None


def refused(message: str, site: str | None = None) -> Refusal:
    return Refusal(
        Code.MASK_SURVIVORS_REFUSED,
        f"{message}; no share is revealed, the coordinator shows one fair list or begins another attempt",
        {"site": site} if site else {},
    )
