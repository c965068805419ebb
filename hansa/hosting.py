"""Commands that run a part of the consortium here: the coordinator, a site; and checks that need their folders."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commons.errors import StoreError
from hansa.arenas import few_arenas
from hansa.output import line

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator

OPERATOR = "operator"
CHARTER = "charter.toml"


@dataclass(frozen=True)
class VerifiedJournal:
    size: int
    root: str


def operator_seat(home: Path) -> Path:
    """Where the coordinator keeps the operator's seat."""
    return home / OPERATOR


def serve(
    home: Path,
    *,
    charter: Path,
    founding: Path,
    log_key: Path | None,
    listen: str,
    enrolment: str,
    store: str,
    states: str,
    mlflow: str,
    dashboard: str,
    as_json: bool,
) -> None:
    """`hansa coordinator start`: until SIGINT or SIGTERM. Raises HansaError naming what is in the way."""
    from orchestrator.coordinator import Coordinator

    few_arenas()
    log_to_stderr()
    if not (home / CHARTER).exists():
        furnish(home, charter=charter, founding=founding, log_key=log_key)
    coordinator = Coordinator(
        home,
        listen,
        store or None,
        mlflow or None,
        dashboard=dashboard,
        states=states or None,
        enrolment=enrolment or None,
    )
    with stop_signal() as stop:
        coordinator.start()
        try:
            _announce(coordinator, as_json=as_json)
            stop.wait()
        finally:
            coordinator.stop()


def furnish(home: Path, *, charter: Path, founding: Path, log_key: Path | None) -> None:
    """Put into a new home what founds its consortium; only what is complete: signed by all, with the log's key.

    The charter goes last, so that an interrupted start is a first start again.
    """
    from commons.errors import HansaError
    from commons.identity import load_signer, write_file
    from hansa.charters import NOTE, check_charter
    from hansa.tokenizers import beside

    checked = check_charter(charter, founding)
    if checked.unsigned:
        raise HansaError(
            f"{', '.join(checked.unsigned)} must sign {charter} first: "
            f"`hansa charter sign {charter} --key THEIR.key --founding {founding}`"
        )
    named = checked.charter.consortium
    if log_key is None:
        raise HansaError(
            f"the first start in {home} needs the secret key of the log: --log-key {named.name}.key"
        )
    if load_signer(log_key).vkey != named.log_key:
        raise HansaError(f"{log_key} is not the log key that {charter} names ({named.log_key})")
    for note in sorted(founding.glob(f"*{NOTE}")):
        write_file(home / "founding" / note.name, note.read_bytes())
    if checked.charter.model.tokenizer.file:
        write_file(beside(home / CHARTER), beside(charter).read_bytes())
    write_file(home / "log.key", log_key.read_bytes(), private=True)
    write_file(home / CHARTER, charter.read_bytes())


def _announce(coordinator: Coordinator, *, as_json: bool) -> None:
    facts = {
        "state": "ready",
        "address": coordinator.address,
        "enrolment": coordinator.enrolment_address,
        "operator": str(operator_seat(coordinator.home)),
        "invites": [str(path) for path in coordinator.invites],
    }
    if as_json:
        line(facts)
        return
    print(
        f"Ready: {coordinator.address} for members and sites, {coordinator.enrolment_address} for enrolment."
    )
    if coordinator.invites:
        print("Invites to hand out:", *coordinator.invites, sep="\n  ")
    print("Ctrl-C stops; started again, it goes on where it was.", flush=True)


def verify_journal(home: Path, store: str) -> VerifiedJournal:
    """Recompute every hash of the journal and check its signature. Raises StoreError with all problems."""
    from governance.journal.store import open_readonly

    journal = open_readonly(store or home)
    try:
        if problems := journal.verify():
            raise StoreError("\n".join(problems))
        return VerifiedJournal(journal.size, journal.root().hex())
    finally:
        journal.close()


def verify_as_site(file: Path) -> dict[str, Any]:
    """`hansa site verify`: the steps that held, and the charter they prove. Raises Refused at the one that does not."""
    from workers.site import verify_site
    from workers.site_file import load

    verified = verify_site(load(file))
    return {
        "consortium": verified.charter.consortium.name,
        "version": verified.version,
        "digest": verified.digest,
        "steps": list(verified.steps),
    }


def lodge_here(ballot: Path, file: Path, out: Path) -> dict[str, Any]:
    """`hansa site lodge`: keep a ballot at this site; `out` gets the ballot with the site's word."""
    from commons.identity import write_file
    from hansa.signing import read_note
    from workers.site import lodge_at_site
    from workers.site_file import load

    lodged, said = lodge_at_site(load(file), read_note(ballot))
    write_file(out, lodged.dump())
    return {"ballot": lodged.digest, "voter": lodged.ballot.voter, "file": str(out), "coordinator": said}


def run_site_here(file: Path, *, as_json: bool) -> int:
    """`hansa site start`: until SIGINT or SIGTERM. The site's log goes to stderr."""
    from workers.site import run_site
    from workers.site_file import load

    few_arenas()
    loaded = load(file)
    log_to_stderr()
    with stop_signal() as stop:
        if as_json:
            line({"site": loaded.name, "partner": loaded.partner, "state": "started"})
        run_site(loaded, stop)
    if as_json:
        line({"site": loaded.name, "partner": loaded.partner, "state": "stopped"})
    return 0


@contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, for as long as the block lasts."""
    stop = threading.Event()
    before = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("hansa").setLevel(logging.INFO)
