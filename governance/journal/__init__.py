"""The journal: one append-only Merkle log of everything the consortium ever accepted, in one transactional store."""

from governance.journal.store import Journal, open_readonly

__all__ = ["Journal", "open_readonly"]
