"""Whole journals of simulated consortia for an auditor to read, and ways to rewrite them as an evil coordinator would."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from commons import charter_file
from commons.charter import Charter
from commons.notes import Signer, compose, digest, parse
from commons.records import Kind, Record, fact
from governance.consortium import Consortium
from governance.fsck import Finding
from governance.journal import Journal, open_readonly
from governance.statements.closing import decide_close
from tests.simulation.world import World
from tests.support.chamber import signer

Records = list[Record]
Evil = Callable[[Records], tuple[Records, int]]
"""A journal -> what the coordinator made of it, and the first record that gives it away. LookupError: try another."""
SEEDS = range(100)
NOTES = (
    Kind.FOUNDING,
    Kind.SITE,
    Kind.PROPOSAL,
    Kind.BALLOT,
    Kind.UPDATE,
    Kind.USAGE,
    Kind.EVALUATION,
    Kind.DISPUTE,
    Kind.RULING,
    Kind.CONVERT,
    Kind.RELEASE,
)


class FixedClock:
    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms


@contextmanager
def simulated() -> Iterator[Histories]:
    made = Histories()
    try:
        yield made
    finally:
        shutil.rmtree(made.folder)


class Histories:
    """Journals of simulated consortia, each completed by a release and the closing of its last period."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="hansa-fsck-", dir=memory if memory.is_dir() else None))
        self._made: dict[int, Records] = {}

    def of(self, seed: int) -> Records:
        if seed not in self._made:
            World.of_seed(self.folder / str(seed), seed).run()
            self._made[seed] = completed(self.folder / str(seed) / "journal.db")
        return list(self._made[seed])

    def path(self, seed: int) -> Path:
        self.of(seed)
        return self.folder / str(seed) / "journal.db"

    def with_evil(self, evil: Evil) -> tuple[Records, int]:
        """The first history that has what it takes."""
        for seed in SEEDS:
            try:
                return evil(self.of(seed))
            except LookupError:
                continue
        raise AssertionError(f"none of {len(SEEDS)} histories has what {evil.__name__} needs")


def completed(path: Path) -> Records:
    """The operator releases the last state, and the clerk closes the books long after."""
    records = read(path)
    charter = charters(records)[1]
    journal = Journal.open(path, signer=signer(charter.consortium.name), clock=FixedClock())
    consortium = Consortium(journal, FixedClock(records[-1].at_ms + 200 * 86_400_000))
    if closed := [r.facts for r in records if r.kind is Kind.CLOSE]:
        opened = [
            r.facts for r in records if r.kind is Kind.ROUND and r.facts["round"] == closed[-1]["round"]
        ]
        licence = charters(records)[opened[-1]["charter_version"]].release.licence
        note = release_note(charter, closed[-1], licence)
        consortium.commit(lambda now_ms: [Record(Kind.RELEASE, now_ms, note)])
    consortium.commit(lambda now_ms: decide_close(consortium.ledger, now_ms))
    journal.close()
    return read(path)


def read(path: Path) -> Records:
    reader = open_readonly(path)
    try:
        return list(reader.records())
    finally:
        reader.close()


def charters(records: Sequence[Record]) -> dict[int, Charter]:
    found = [charter_file.from_canonical(r.body) for r in records if r.kind is Kind.CHARTER]
    return {charter.version: charter for charter in found}


def release_note(charter: Charter, closed: dict[str, Any], licence: str) -> bytes:
    name = charter.consortium.name
    values = {
        "consortium": name,
        "run": closed["run"],
        "round": str(closed["round"]),
        "state": closed["state"],
        "manifest": digest(b"the files"),
        "licence": licence,
    }
    return signer(name).sign(compose("hansa-release/v1", list(values.items())))


def where(records: Sequence[Record], kind: Kind | str, lawful: Callable[[Any], bool] = lambda _: True) -> int:
    """Index of the first record of a kind, or transfer of a type, whose facts are as wanted. LookupError: none."""
    for index, record in enumerate(records):
        if isinstance(kind, Kind) and record.kind is kind and (kind in NOTES or lawful(record.facts)):
            return index
        if not isinstance(kind, Kind) and record.kind is Kind.TRANSFER:
            facts = record.facts
            if facts["type"] == kind and lawful(facts):
                return index
    raise LookupError(kind)


def changed(records: Records, index: int, /, **changes: Any) -> tuple[Records, int]:
    """One fact says something else."""
    old = records[index]
    records[index] = fact(old.kind, old.at_ms, **(old.facts | changes))
    return records, index


def added(records: Records, index: int, kind: Kind, facts: dict[str, Any]) -> tuple[Records, int]:
    """One more fact, right after record `index`."""
    records.insert(index + 1, fact(kind, records[index].at_ms, **facts))
    return records, index + 1


def by_stranger(record: Record) -> Record:
    """The same words under a key of the same name that nobody knows."""
    note = parse(record.body)
    return Record(record.kind, record.at_ms, Signer.generate(note.signatures[0].name).sign(note.text))


def rewritten(folder: Path, records: Records, key: Signer) -> Path:
    """A journal of exactly these records, every hash and signature of the log as it must be."""
    journal = Journal.open(folder / "evil.db", signer=key, clock=FixedClock())
    for start in range(0, len(records), 1000):
        journal.append(records[start : start + 1000])
    journal.close()
    return folder / "evil.db"


def log_key(records: Sequence[Record]) -> Signer:
    return signer(records[0].facts["consortium"])


def said(findings: Sequence[Finding]) -> str:
    return "\n".join(f"{f.index} {f.rule}: {f}" for f in findings)
