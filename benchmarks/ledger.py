"""Journal and ledger: how fast, how exact, and whether both hold when everything fails.

Parts are measured one after the other and kept in the work folder; interrupted, it goes on with the next. The long
ones (ten thousand seeds, fifty kills, a journal of a million records) take about an hour on two cores and are measured
with ``--long``; without it what was measured before is shown again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, measured_before, save
from benchmarks.ledger_parts import journal, kills, proof, settle, simulation, statements, witnesses

SEEDS = 10_000
KILLS = 50
RECORDS = 1_000_000
RUNS = 3
"""Rates are the best of so many runs: the machine has other things to do."""
SHORT, LONG = "hansa bench ledger", "hansa bench ledger --long"

NOTES = (
    (
        "A settled transfer is a hold that was made and settled, through `Consortium.commit`: two decisions, the records of "
        "hold, contribution and settle, their place in the Merkle tree, a signed checkpoint and an fsync for each commit of "
        "100, and the fold of the records. SQLite: WAL, synchronous=FULL. Postgres 15: fsync and synchronous_commit on."
    ),
    (
        "A simulated seed is a whole run of a random consortium: the real coordinator code over a simulated clock and network "
        "that drops, repeats, delays and reorders, with the coordinator dying at storage steps. Its books are added up "
        "again by an auditor that shares no code with the ledger."
    ),
    (
        "Kills are SIGKILL to a real coordinator process, with real sites that train in Ray actors, at seeded moments of their "
        "rounds. Resumed is from the death to the next record in the journal."
    ),
)


def main(work: Path, *, long: bool = False) -> list[Figure]:
    """Measure what is not yet in `work`, write `results/ledger.json`, answer the figures."""
    figures = [*_rates(work), *_proofs(work)]
    if long:
        for part in (_million, _statement, _seeds, _kills):
            figures += part(work)
    else:
        figures += measured_before("ledger", LONG)
    save("ledger", figures, notes=NOTES)
    return figures


def _rates(work: Path) -> list[Figure]:
    from tests.support.postgres import NoPostgres, running

    def sqlite() -> float:
        folder = work / "rates"
        return max(settle.settled_per_s(folder / f"{n}" / "journal.db") for n in range(RUNS))

    def postgres() -> float | str:
        try:
            with running(durable=True) as url:
                return max(settle.settled_per_s(url) for _ in range(RUNS))
        except NoPostgres as missing:
            return f"not measured: {missing}"

    found = [
        ("settled transfers, SQLite", _once(work, "sqlite", sqlite), 2_000),
        ("settled transfers, Postgres 15", _once(work, "postgres", postgres), 3_000),
    ]
    return [
        Figure(name, value, "/s", f">= {least:,} /s", not isinstance(value, str) and value >= least, SHORT)
        for name, value, least in found
    ]


def _proofs(work: Path) -> list[Figure]:
    checking = _once(work, "proof", proof.proof_check)
    shown_s = _once(work, "witnesses", witnesses.measure_witnesses)
    return [
        _below(f"check a proof in {RECORDS:,} records", checking["ms"], "ms", 1, SHORT),
        _below("the same with five cosignatures", checking["witnessed_ms"], "ms", 1, SHORT),
        _below("checkpoint with 5 witnesses, slowest of 20", shown_s, "s", 1, SHORT),
    ]


def _million(work: Path) -> list[Figure]:
    found = _once(work, "slowdown", lambda: settle.slowdown(work / "slowdown", 10_000, RECORDS))
    slower = 100 * (found["small_per_s"] / found["large_per_s"] - 1)
    path = settle.kept(work / "slowdown", RECORDS)
    replay_s = _once(work, "replay", lambda: journal.replay_s(path))
    return [
        Figure(
            f"slower at {RECORDS:,} records than at 10,000",
            round(slower, 1),
            "%",
            "<= 10 %",
            slower <= 10,
            LONG,
        ),
        Figure(f"coordinator knows {RECORDS:,} records again", round(replay_s, 1), "s", "", None, LONG),
    ]


def _statement(work: Path) -> list[Figure]:
    path = settle.kept(work / "slowdown", RECORDS)
    took_s = _once(work, "statement", lambda: statements.statement_s(path))
    return [_below(f"a statement over {RECORDS:,} records", took_s, "s", 2, LONG)]


def _seeds(work: Path) -> list[Figure]:
    found = simulation.run_seeds(0, SEEDS, work=work / "seeds")
    clean = found.clean == SEEDS and not found.failed
    shown = f"{found.clean:,} of {SEEDS:,}"
    return [
        Figure("simulated seeds without a finding", shown, "", f"{SEEDS:,}", clean, LONG),
        Figure("simulated deaths of the coordinator in them", found.crashes, "", "", None, LONG),
        Figure("time for them on two cores", round(found.seconds / 60, 1), "min", "", None, LONG),
    ]


def _kills(work: Path) -> list[Figure]:
    found = _once(work, "kills", lambda: kills.kill_many(work / "kills", KILLS))
    slowest = max(found["resumed_s"])
    wrong = found["lost_updates"] + found["double_charges"] + len(found["problems"])
    return [
        Figure(
            "kill -9 of the coordinator", found["kills"], "", f">= {KILLS}", found["kills"] >= KILLS, LONG
        ),
        Figure(
            "lost updates, double charges, objections of the auditor after them",
            wrong,
            "",
            "0",
            not wrong,
            LONG,
        ),
        _below("resumed after a kill, slowest", slowest, "s", 10, LONG),
    ]


def _below(name: str, value: float, unit: str, most: float, command: str) -> Figure:
    return Figure(name, round(value, 3), unit, f"< {most:g} {unit}", value < most, command)


def _once(work: Path, name: str, measure: Callable[[], Any]) -> Any:
    """What `measure` gave, as JSON; from the work folder when it was measured there before."""
    path = work / f"{name}.json"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        found = measure()
        path.write_text(json.dumps(asdict(found) if is_dataclass(found) else found))  # type: ignore[arg-type]
    return json.loads(path.read_text())
