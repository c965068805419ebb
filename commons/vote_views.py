"""Views with which a vote is counted again by whoever doubts it, and a log is held to what it said before."""

from __future__ import annotations

from commons.views import View

EVIDENCE_MAX = 1000
"""Records of one answer; a vote with more has its latest left out, which the answer says."""


class EntryView(View):
    """One record with what proves that it is in the journal."""

    index: int
    leaf: str
    """Base64."""
    path: tuple[str, ...]
    """Base64 hashes, from the leaf up."""


class EvidenceView(View):
    """The records that a proposal's state follows from, in order, with the charters and ballot keys they stand on. Key: as of
    the view `proposal`."""

    proposal: str
    checkpoint: str
    """The signed checkpoint that all paths lead to."""
    entries: tuple[EntryView, ...]
    left_out: int = 0


class ExtensionView(View):
    """That the journal's first `new` records begin with its first `old`. Key: ``old-new``."""

    old: int
    new: int
    path: tuple[str, ...]
    """Base64 hashes of the consistency proof between the two (RFC 6962); who asks knows both roots."""
