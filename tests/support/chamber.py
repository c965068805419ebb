"""Three founders, a charter and a journal in memory, with the keys to sign and to lie."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from typing import Any

from commons import charter_file, merkle
from commons.ballots import Ballot, Choice, Proposal
from commons.chain import Entry, Trust
from commons.charter import Charter
from commons.errors import Refusal
from commons.founding import Delegation, Founding
from commons.log import Checkpoint
from commons.merkle import Frontier
from commons.names import ProposalId
from commons.notes import Signer
from commons.opening import Opening
from commons.records import Record
from governance.members import Members
from governance.proposals import Proposals

START_MS = 1_700_000_000_000
WINDOW_MS = 60_000


def signer(name: str) -> Signer:
    """The same key for the same name, in every run."""
    return Signer(name, hashlib.sha256(name.encode()).digest())


MEMBERS = ("acme", "beta", "coop")
LOG = signer("demo")


def charter(**changes: Any) -> Charter:
    """Charter of acme, beta and coop, with one site each for acme and beta; coop is a funder."""
    document: dict[str, Any] = {
        "version": 1,
        "consortium": {"name": "demo", "log_key": LOG.vkey},
        "members": tuple({"name": m, "key": signer(m).vkey, "budget_micro": 1_000_000} for m in MEMBERS),
        "sites": tuple(
            {
                "name": name,
                "partner": partner,
                "payer": payer,
                "domain": domain,
                "experts": (f"{domain}-0",),
                "device": "cpu",
                "data_statement": "Written for tests.",
            }
            for name, partner, payer, domain in (
                ("berlin", "acme", "acme", "law"),
                ("turin", "beta", "coop", "code"),
            )
        ),
        "model": {"family": "glm4_moe", "config": {"hidden_size": 64, "rope_theta": 10000.0, "tied": False}},
        "learning": {
            "rounds": 4,
            "inner_steps": 10,
            "batch_size": 4,
            "sequence_length": 64,
            "learning_rate": 0.01,
        },
        "rounds": {"quorum": 1, "grace_s": 5, "lease_s": 60},
        "rate_card": {"currency": "EUR", "rates": ({"device": "cpu", "micro_per_gflop": 3},)},
        "voting": {"window_s": WINDOW_MS // 1000},
        "release": {"licence": "Apache-2.0"},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key:
            document[section] = {**document[section], key: value}
        else:
            document[section] = value
    return Charter.model_validate(document)


def with_sites(count: int, **changes: Any) -> Charter:
    """A charter of `count` sites, all of acme's."""
    first = charter().sites[0].model_dump()
    sites = tuple({**first, "name": f"site-{n}", "experts": (f"law-{n}",)} for n in range(count))
    return charter(sites=sites, **changes)


def founding_notes(of: Charter, signers: Sequence[str] = MEMBERS) -> list[bytes]:
    digest = charter_file.digest(of)
    return [signer(m).sign(Founding(of.consortium.name, digest, m).compose()) for m in signers]


def delegation(partner: str, site: str, *, key: Signer | None = None, by: Signer | None = None) -> bytes:
    name = f"{partner}/{site}"
    text = Delegation("demo", partner, site, (key or signer(name)).vkey, "sha256:" + "0" * 64).compose()
    return (by or signer(partner)).sign(text)


def proposal(of: Charter, **changes: Any) -> Proposal:
    """By default acme asks for 20 inner steps."""
    fields: dict[str, Any] = {
        "consortium": "demo",
        "proposer": "acme",
        "title": "Twice the steps",
        "feature": "inner-steps",
        "parameters": {"steps": 20},
        "charter": charter_file.digest(of),
        "effective_round": 2,
        "nonce": "00" * 16,
    }
    return Proposal(**{**fields, **changes})


def ballot(opening: Opening, voter: str, choice: Choice, **changes: Any) -> Ballot:
    fields: dict[str, Any] = {
        "consortium": "demo",
        "proposal": opening.proposal,
        "rules": opening.rules_digest,
        "electorate": opening.electorate_digest,
        "voter": voter,
        "choice": choice,
        "nonce": hashlib.sha256(f"{voter}{choice}".encode()).hexdigest()[:32],
        "cast_at": "2026-11-23T18:40:12Z",
    }
    return Ballot(**{**fields, **changes})


def sign(what: Proposal | Ballot, by: Signer | None = None) -> bytes:
    name = what.proposer if isinstance(what, Proposal) else what.voter
    return (by or signer(name)).sign(what.compose())


class Log:
    """A journal in memory that records whatever it is told to, and proves it."""

    def __init__(self, records: Sequence[Record] = ()) -> None:
        self.all: list[Record] = []
        self._frontier = Frontier()
        self._nodes: dict[tuple[int, int], bytes] = {}
        self.append(records)

    def append(self, records: Sequence[Record]) -> list[int]:
        first = self.size
        for record in records:
            for level, index, value in self._frontier.append(merkle.leaf_hash(record.leaf)):
                self._nodes[level, index] = value
            self.all.append(record)
        return list(range(first, self.size))

    @property
    def size(self) -> int:
        return len(self.all)

    @property
    def head(self) -> Checkpoint:
        return Checkpoint("demo", self.size, self._frontier.root())

    def checkpoint(self) -> bytes:
        return self.head.sign(LOG)

    def record(self, index: int) -> Record:
        return self.all[index]

    def leaves(self, indices: Sequence[int]) -> list[bytes]:
        return [self.all[index].leaf for index in indices]

    def inclusion(self, index: int, size: int) -> list[bytes]:
        return merkle.inclusion_proof(index, size, lambda level, i: self._nodes[level, i])

    def consistency(self, old: int, new: int) -> list[bytes]:
        return merkle.consistency_proof(old, new, lambda level, i: self._nodes[level, i])

    def entries(self, *, without: Sequence[int] = ()) -> list[Entry]:
        """Every record, with its proof."""
        return [(i, r.leaf, self.inclusion(i, self.size)) for i, r in enumerate(self.all) if i not in without]


class Chamber:
    """Members and proposals over a `Log`: what `governance.consortium` does, without a store."""

    def __init__(self, founding: Charter | None = None) -> None:
        self.journal = Log()
        self.lock = threading.RLock()
        self.members, self.proposals = Members(), Proposals()
        self.now_ms = START_MS
        self.founding = founding or charter()
        notes = founding_notes(self.founding, [member.name for member in self.founding.members])
        self.take(self.members.decide_found(self.founding, notes, LOG.vkey, self.now_ms))

    @property
    def charter(self) -> Charter:
        return self.members.charter

    @property
    def trust(self) -> Trust:
        return Trust.of(self.founding)

    def take(self, decided: Sequence[Record] | Refusal) -> list[int]:
        assert not isinstance(decided, Refusal), decided.message
        indices = self.journal.append(decided)
        for index, record in zip(indices, decided, strict=True):
            self.members.apply(index, record)
            self.proposals.apply(index, record)
        return indices

    def try_submit(self, note: bytes) -> list[Record] | Refusal:
        return self.proposals.decide_submit(note, self.charter, self.now_ms)

    def submit(self, note: bytes) -> list[int]:
        return self.take(self.try_submit(note))

    def propose(self, **changes: Any) -> Opening:
        """Submit a signed proposal on the charter in force; its opening."""
        indices = self.submit(sign(proposal(self.charter, **changes)))
        return Opening.from_facts(self.journal.record(indices[-1]).facts)

    def vote(self, opening: Opening, **choices: Choice) -> list[int]:
        return [i for m, c in choices.items() for i in self.submit(sign(ballot(opening, m, c)))]

    def close(self) -> list[int]:
        return self.take(self.proposals.decide_close(self.now_ms))

    def execute(self, round_number: int = 2, run: str = "") -> list[int]:
        return self.take(self.proposals.decide_execute(self.charter, round_number, self.now_ms, run=run))

    def pass_into_law(self, **changes: Any) -> Opening:
        """Propose, vote for by all, close and execute."""
        opening = self.propose(**changes)
        self.vote(opening, acme="for", beta="for", coop="for")
        self.close()
        self.execute()
        return opening

    def state(self, key: ProposalId) -> str:
        return next(view.state for view in self.proposals.views() if view.id == key)
