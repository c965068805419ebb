"""How long a site takes to prove the charter to itself, after years of votes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from commons import charter_file
from commons.anchors import Anchor, Shown, entries_digest
from commons.chain import VerifiedCharter, Wanted, verify_chain
from commons.chain_file import ChainFile
from commons.errors import Refusal
from commons.notes import parse
from governance.proof import chain_bundle
from tests.support.chamber import LOG, Chamber, ballot, charter, delegation, proposal, sign, signer

_CHECK = """
import sys, time
from pathlib import Path
from commons.chain_file import ChainFile
data = Path(sys.argv[1]).read_bytes()
start = time.perf_counter()
found = ChainFile.load(data).verify()
print((time.perf_counter() - start) * 1000)
assert found.version == int(sys.argv[2]), found
"""


@dataclass(frozen=True)
class Edge:
    votes: int
    voters: int
    since: int
    """Executed votes since the charter that members vouch for."""
    records: int
    anchored_ms: float
    """From the file to the proven charter, in a fresh process, without the start of Python."""
    anchored_bytes: int
    whole_ms: float
    """Every ballot since the founding."""
    whole_bytes: int
    next_ms: float
    """One more vote, for a site that was there before."""


def edge_check(work: Path, *, votes: int = 1000, voters: int = 20, since: int = 4, checks: int = 5) -> Edge:
    """`votes` votes carried out by `voters` members with a site each; all vouch for the charter of `since` votes ago."""
    chamber = _aged(votes, voters, since)
    work.mkdir(parents=True, exist_ok=True)
    anchored, whole = _file(chamber, Wanted()), _file(chamber, Wanted(whole=True))
    path = work / "anchored.proof"
    path.write_bytes(anchored.dump())
    before = _verified(whole.verify())
    size, version = before.checkpoint.size, before.version
    _vote(chamber, votes + 1)
    bundle = chain_bundle(chamber, Wanted(size, version))  # type: ignore[arg-type]
    assert not isinstance(bundle, Refusal)
    checkpoint, entries, consistency = bundle

    def again() -> VerifiedCharter | Refusal:
        return verify_chain(
            entries, checkpoint, consistency, trust=chamber.trust, have=before.checkpoint,
            least_version=version, known=before.digest,
        )  # fmt: skip

    return Edge(
        votes=votes,
        voters=voters,
        since=since,
        records=chamber.journal.size,
        anchored_ms=min(_apart(path, version) for _ in range(checks)),
        anchored_bytes=path.stat().st_size,
        whole_ms=_ms(whole.verify),
        whole_bytes=len(whole.dump()),
        next_ms=min(_ms(again) for _ in range(checks)),
    )


def _aged(votes: int, voters: int, since: int) -> Chamber:
    names = [f"m{n:02d}" for n in range(voters)]
    first = charter().sites[0].model_dump()
    founding = charter(
        members=tuple({"name": n, "key": signer(n).vkey, "budget_micro": 0} for n in names),
        sites=tuple(
            {**first, "name": f"{n}-site", "partner": n, "payer": n, "experts": (f"{n}-0",)} for n in names
        ),
    )
    chamber = Chamber(founding)
    for name in names:
        note = delegation(name, f"{name}-site")
        chamber.take(chamber.members.decide_enrol_site(note, chamber.now_ms))
    for number in range(1, votes + 1):
        _vote(chamber, number)
        if number == votes - since:
            _vouch(chamber)
    return chamber


def _vote(chamber: Chamber, number: int) -> None:
    wish = proposal(
        chamber.charter, proposer=chamber.charter.members[0].name, title=f"Vote {number}",
        parameters={"steps": 100 + number}, nonce=f"{number:032x}", effective_round=1,
    )  # fmt: skip
    chamber.submit(sign(wish))
    opening = chamber.proposals.items[wish.id].opening
    for member in opening.electorate:
        chamber.submit(sign(ballot(opening, member, "for")))
    chamber.close()
    chamber.execute()


def _vouch(chamber: Chamber) -> None:
    of = chamber.charter
    for member in of.members:
        note = Anchor(
            consortium="demo", member=member.name, charter_version=of.version, charter=charter_file.digest(of)
        )
        signed = parse(signer(member.name).sign(note.text))
        chamber.take(chamber.members.decide_anchor(signed, chamber.now_ms))


def _file(chamber: Chamber, wanted: Wanted) -> ChainFile:
    bundle = chain_bundle(chamber, wanted)  # type: ignore[arg-type]
    assert not isinstance(bundle, Refusal)
    checkpoint, entries, _ = bundle
    note = Shown(
        consortium="demo",
        size=chamber.journal.size,
        charter_version=chamber.charter.version,
        charter=charter_file.digest(chamber.charter),
        entries=entries_digest([(index, leaf) for index, leaf, _ in entries]),
    )
    return ChainFile.of(chamber.founding, checkpoint, entries, LOG.sign(note.text), whole=wanted.whole)


def _verified(answer: VerifiedCharter | Refusal) -> VerifiedCharter:
    assert isinstance(answer, VerifiedCharter), answer
    return answer


def _apart(path: Path, version: int) -> float:
    """In a process that has verified nothing yet."""
    done = subprocess.run(
        [sys.executable, "-c", _CHECK, str(path), str(version)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _ms(check: Callable[[], VerifiedCharter | Refusal]) -> float:
    started = time.perf_counter_ns()
    _verified(check())
    return (time.perf_counter_ns() - started) / 1e6
