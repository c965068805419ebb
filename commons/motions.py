"""What members sign beside proposals and ballots: motions on a vote, a key to vote with, an officer's pause.

Owns the fields. Who may say it, and what follows, is decided in `commons.course` and `governance.proposals`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from commons.work import Words


@dataclass(frozen=True, kw_only=True)
class Motion(Words):
    """`withdraw`: the proposer, before voting begins. `discuss`: two members stop the window, once. `resume`: one of
    them. `veto`: a safety officer, while the proposal is queued, for a reason."""

    KIND = "hansa-motion/v1"
    consortium: str
    proposal: str
    member: str
    motion: Literal["withdraw", "discuss", "resume", "veto"]
    reason: str
    """In the member's words; `-` where none is given. A veto needs one."""
    nonce: str


@dataclass(frozen=True, kw_only=True)
class BallotKey(Words):
    """A member lets another key sign its ballots until `expires_ms`; it takes the place of the one before.

    One that has expired when it is made takes the key away.
    """

    KIND = "hansa-ballot-key/v1"
    consortium: str
    member: str
    key: str
    """Verifier key (vkey), by the name ``<member>/ballot``."""
    expires_ms: int
    nonce: str


@dataclass(frozen=True, kw_only=True)
class Pause(Words):
    """A safety officer stops the rounds at once. It lapses unless the members vote for it."""

    KIND = "hansa-pause/v1"
    consortium: str
    member: str
    reason: str
    nonce: str
