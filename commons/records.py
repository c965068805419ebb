"""One record of the journal: what it is, when the log took it, and its exact bytes.

The leaf that is hashed is ``<kind> <at_ms>\\n<body>``. A body is either a signed note (somebody's words,
byte for byte) or a fact: canonical JSON written by the coordinator, integers and strings only where money
or votes are concerned. Nothing is ever re-serialised to be checked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from commons.words import Word

LEAF_BYTES_MAX = 65_535
"""Limit of the C2SP tlog-tiles entry format; larger things are recorded by digest."""


class Kind(Word):
    GENESIS = "genesis"  # fact: consortium, log_key
    CHARTER = "charter"  # fact: the whole charter (commons.charter), any version
    FOUNDING = "founding"  # note by a member over the digest of charter version 1
    ANCHOR = "anchor"  # note by a member: it has verified the journal up to this charter version
    SITE = "site"  # note by a member delegating a site's keys
    TRANSFER = "transfer"  # fact: one movement of an amount between two accounts (governance.ledger)
    REFUSED = "refused"  # fact: a transfer id that failed stays failed
    PERIOD = "period"  # fact: a period of the books closed, with the root of its balances
    COUNTERSIGN = "countersign"  # note by a member: this is my statement
    DISPUTE = "dispute"  # note by a member: this charge is wrong
    RULING = "ruling"  # note by a member that ends a dispute of its own accord
    CONVERT = "convert"  # note by a member: turn pledged device time into budget
    PROPOSAL = "proposal"  # note by a member
    OPENING = "opening"  # fact: electorate, weights, rules, window of one proposal
    BALLOT = "ballot"  # note by a member
    BALLOT_KEY = "ballot-key"  # note by a member: a key that may sign its ballots
    PLEDGE = "pledge"  # note by a member: money for a proposal, if it becomes law
    LODGED = "lodged"  # note by a site: it keeps this ballot
    MOTION = "motion"  # note by a member: withdraw, discuss, resume or veto a proposal
    PAUSE = "pause"  # note by a safety officer: no further round opens for now
    OUTCOME = "outcome"  # fact: tally of one proposal
    EXECUTION = "execution"  # fact: proposal carried out; the next CHARTER record follows it
    RUN = "run"  # fact: a run opened
    ROUND = "round"  # fact: a round opened, with its assignments and holds
    UPDATE = "update"  # note by a site: its update was admitted
    USAGE = "usage"  # note by a site: what the round took
    REJECTION = "rejection"  # fact: an update rejected, or a site left out
    PROBE = "probe"  # note by a site: loss of a state on the charter's probe
    VERDICT = "verdict"  # fact: what the measurements say of a round's new state
    WORTH = "worth"  # fact: what the probe loss rises by without single updates and experts
    CLOSE = "close"  # fact: a round combined and saved
    REMADE = "remade"  # fact: the run's state re-made for a charter whose experts are others'
    EVALUATION = "evaluation"  # note by a site: held-out loss of a state
    FINISH = "finish"  # fact: a run ended
    RELEASE = "release"  # note by the coordinator: manifest of a release


@dataclass(frozen=True)
class Record:
    kind: Kind
    at_ms: int
    body: bytes

    @property
    def leaf(self) -> bytes:
        """The bytes that are hashed. At most `LEAF_BYTES_MAX`."""
        data = f"{self.kind} {self.at_ms}\n".encode() + self.body
        assert len(data) <= LEAF_BYTES_MAX, f"{self.kind} record of {len(data)} bytes: record it by digest"
        return data

    @classmethod
    def parse(cls, leaf: bytes) -> Record:
        """Read a leaf back. Raises ValueError when it is not one."""
        head, newline, body = leaf.partition(b"\n")
        kind, space, at_ms = head.decode("ascii").partition(" ")
        if not newline or not space or not at_ms.isdecimal() or len(leaf) > LEAF_BYTES_MAX:
            raise ValueError(f"not a journal record: {head[:40]!r}")
        if at_ms.startswith("0") and at_ms != "0":
            raise ValueError(f"not the canonical form of a journal record: {head[:40]!r}")
        return cls(Kind(kind), int(at_ms), body)

    @property
    def facts(self) -> dict[str, Any]:
        """The body of a fact. Raises ValueError when it is not a JSON object."""
        value = from_json(self.body)  # a third of json.loads' time: replaying a long journal is mostly this
        if not isinstance(value, dict):
            raise ValueError(f"{self.kind} record is not a JSON object")  # noqa: TRY004 - what is wrong is data
        return value


def fact(kind: Kind, at_ms: int, **fields: Any) -> Record:
    """A record written by the coordinator itself: sorted keys, no spaces, UTF-8, no NaN."""
    return Record(kind, at_ms, canonical_json(fields))


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no white space, UTF-8, NaN and infinity refused (ValueError)."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
