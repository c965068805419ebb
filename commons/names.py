"""Names for every string and number that is not just a string or a number."""

from typing import NewType

PartnerId = NewType("PartnerId", str)
SiteId = NewType("SiteId", str)
RunId = NewType("RunId", str)
ExpertId = NewType("ExpertId", str)
ProposalId = NewType("ProposalId", str)

Digest = NewType("Digest", str)
"""``sha256:<64 lower-case hex digits>`` of the exact bytes; of model states and what they are made of, ``blake3:<...>``."""

RoundNumber = NewType("RoundNumber", int)
"""Outer step of a run, counted from 1; state 0 is the seed model."""

Micro = NewType("Micro", int)
"""Money in 1e-6 of the charter's currency. Never a float."""
