"""Views of who is there, what was released, and the journal's records themselves."""

from __future__ import annotations

from commons.views import View

RECORDS_SHOWN = 50
RECORDS_SEARCHED = 20_000
"""Records that one search looks at; the next goes on from there."""


class AccessView(View):
    """What one member or site holds to speak to the coordinator."""

    subject: str
    """``member alder`` or ``site berlin of alder``."""
    partner: str
    site: str = ""
    joined: bool
    invite_until_ms: int = 0
    """Until when its invite can be used; 0: there is none."""
    certificate_until_ms: int = 0
    """0: not known."""


class MemberView(View):
    member: str
    key: str
    """Its verifier key (C2SP vkey)."""
    group: str = ""
    suspended: bool = False
    dormant: bool = False
    """It missed three votes in a row, and quorums do not count on it."""
    officer: bool = False
    ballot_key: str = ""
    """That it delegated its ballots to; empty: it signs with its own."""
    ballot_key_until_ms: int = 0


class SiteEntryView(View):
    site: str
    partner: str
    payer: str
    domain: str
    device: str
    devices: int
    experts: tuple[str, ...]
    data_statement: str
    key: str = ""
    """That signs its updates; empty: it has not joined."""
    epsilon: float | None = None
    epsilon_max: float | None = None


class MembersView(View):
    charter_version: int
    members: tuple[MemberView, ...]
    sites: tuple[SiteEntryView, ...]
    access: tuple[AccessView, ...]


class MadeReleaseView(View):
    """A release that the coordinator signed."""

    index: int
    """Its journal record."""
    at_ms: int
    run: str
    round: int
    state: str
    manifest: str
    licence: str
    parent: str = ""
    """State that the run began with."""


class VotedReleaseView(View):
    """A release that the members voted for."""

    alias: str
    manifest: str
    licence: str
    gates: str
    audience: str
    charter_version: int
    """The first that has it."""


class ReleasesView(View):
    licence: str
    """Of the next release, by the charter in force."""
    made: tuple[MadeReleaseView, ...]
    voted: tuple[VotedReleaseView, ...]


class RecordLineView(View):
    index: int
    kind: str
    at_ms: int
    leaf_bytes: int
    head: str
    """Beginning of the body."""


class RecordsView(View):
    """Records found, the newest first. Key: ``kind=KIND&text=TEXT&before=INDEX``, each of them optional."""

    records: tuple[RecordLineView, ...]
    searched_from: int
    """The oldest record that was looked at: 0 means all before `before` were."""
    size: int


class RecordView(View):
    """One record with what proves that it is in the journal. Key: its index."""

    index: int
    kind: str
    at_ms: int
    leaf: str
    """Base64."""
    path: tuple[str, ...]
    """Base64 hashes, from the leaf up."""
    checkpoint: str
    """The signed checkpoint that the path leads to."""
