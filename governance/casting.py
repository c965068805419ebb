"""The text of a ballot for somebody to sign, here or on another machine."""

from __future__ import annotations

import secrets
from datetime import datetime, timezone

from commons.ballots import Ballot
from commons.names import Digest, ProposalId
from commons.notes import digest
from commons.views import ProposalView


def ballot_text(consortium: str, voter: str, view: ProposalView, choice: str, *, reason: str = "") -> str:
    """The very text a ballot signs, fresh each time. `reason`: kept by the voter, of whose text the ballot has the digest.

    Raises NoteError when the choice cannot stand in a note.
    """
    ballot = Ballot(
        consortium=consortium,
        proposal=ProposalId(view.id),
        rules=Digest(view.rules),
        electorate=Digest(view.electorate_digest),
        voter=voter,
        choice=choice,
        nonce=secrets.token_hex(16),
        cast_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        reason=digest(reason.encode()) if reason else "",
    )
    return ballot.compose()
