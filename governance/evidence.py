"""What a vote is counted again from: its records with their proofs, and that the journal has only grown.

Selects, never judges, as `governance.proof` does for sites.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from commons.errors import Code, Refusal
from commons.log import Checkpoint, hash_text
from commons.names import ProposalId
from commons.notes import base64_text, parse
from commons.vote_views import EVIDENCE_MAX, EntryView, EvidenceView, ExtensionView
from governance.consortium import Consortium
from governance.proposal_views import label
from governance.statements.issuing import PersonalReader


def evidence_readers(consortium: Consortium) -> Mapping[str, PersonalReader]:
    """The views `evidence` and `extension`, the same for every caller."""
    return {
        "evidence": lambda _, key: evidence_view(consortium, key),
        "extension": lambda _, key: extension_view(consortium, key),
    }


def evidence_view(consortium: Consortium, which: str) -> EvidenceView | Refusal:
    """Of one proposal, by id, number or P-number. The proofs are made without the consortium's lock: the journal only grows."""
    with consortium.lock:
        items = consortium.proposals.items.values()
        named = ((item.opening.number, item.opening.proposal) for item in items)
        found = next((key for n, key in named if which in (key, str(n), label(n))), None)
        if found is None:
            return Refusal(Code.PROPOSAL_UNKNOWN, f"there is no proposal {which[:80]!r} in this journal")
        every = _records(consortium, found)
    checkpoint = consortium.journal.checkpoint()
    size = Checkpoint.read(parse(checkpoint)).size
    return EvidenceView(
        proposal=found,
        checkpoint=checkpoint.decode(),
        entries=tuple(_entries(consortium, every[:EVIDENCE_MAX], size)),
        left_out=len(every[EVIDENCE_MAX:]),
    )


def extension_view(consortium: Consortium, key: str) -> ExtensionView | Refusal:
    """From the first records to more of them. Refused when there are not so many: then this journal is an older copy."""
    asked = re.fullmatch(r"([0-9]{1,15})-([0-9]{1,15})", key, re.ASCII)
    old, new = (int(part) for part in asked.groups()) if asked else (1, 0)
    if old > new:
        return Refusal(Code.REQUEST_INVALID, f"{key[:40]!r} is no pair of sizes, the smaller first")
    if new > consortium.journal.size:
        return Refusal(
            Code.LOG_FORKED,
            f"the caller knows {new} records, this journal has {consortium.journal.size}: it is an older copy; the operator "
            "restores the newest one",
        )
    return ExtensionView(
        old=old, new=new, path=tuple(map(hash_text, consortium.journal.consistency(old, new)))
    )


def _records(consortium: Consortium, proposal: ProposalId) -> list[int]:
    """Journal indexes: the proposal's own, the charter it opened under and the one it made, its voters' ballot keys."""
    proposals, members = consortium.proposals, consortium.members
    item = proposals.items[proposal]
    opened_under = proposals.charters[proposals.bases[item.opening.charter]].version
    charters = {opened_under, item.charter_version} - {None}
    found = {*item.evidence, *(members.charter_at[version] for version in charters if version is not None)}
    last = max(item.evidence)
    voters = set(item.opening.electorate)
    found |= {at for at, member in proposals.delegations if member in voters and at < last}
    return sorted(found)


def _entries(consortium: Consortium, indexes: Sequence[int], size: int) -> list[EntryView]:
    journal = consortium.journal
    return [
        EntryView(index=i, leaf=base64_text(leaf), path=tuple(map(hash_text, journal.inclusion(i, size))))
        for i, leaf in zip(indexes, journal.leaves(indexes), strict=True)
    ]
