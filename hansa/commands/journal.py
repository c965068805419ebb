"""`hansa journal`: check the log that everything else follows from, prove what is in it, watch over it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import HOME, Home, Json
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)

FINDINGS = 5
"""Exit code of an audit that found something, as of a store that cannot be used."""
Store = Annotated[
    str, typer.Option("--store", envvar="HANSA_STORE", help="Journal store, when it is not in home.")
]


@app.callback()
def journals() -> None:
    """Check the log that everything else follows from, prove what is in it, watch over it."""


@app.command("verify")
def verify(
    file: Annotated[
        Path | None, typer.Argument(help="A .tlog-proof file to check, without journal or network.")
    ] = None,
    key: Annotated[str, typer.Option(help="The log's verifier key, or a file with it; with FILE.")] = "",
    seat: Annotated[Path | None, typer.Option(help="A seat, whose log key is taken; with FILE.")] = None,
    policy: Annotated[
        Path | None, typer.Option(help="C2SP policy file: logs, witnesses, quorum; with FILE.")
    ] = None,
    home: Home = HOME,
    store: Store = "",
    as_json: Json = False,
) -> None:
    """Recompute every hash of the journal, without changing it; or, with FILE, check what one file proves.

    \b
    Example:
      hansa journal verify
      hansa journal verify quay-1204.tlog-proof --key "$(cat quay.pub)"
    """
    if file is not None:
        _check_file(file, key, seat, policy, as_json=as_json)
        return
    from hansa.hosting import verify_journal

    found = verify_journal(home, store)
    text = f"The journal is intact: {found.size} records, root {found.root}"
    answer({"size": found.size, "root": found.root, "verified": True}, text, as_json=as_json)


@app.command("prove")
def prove(
    index: Annotated[int | None, typer.Argument(help="Which record, from 0.")] = None,
    transfer: Annotated[str, typer.Option(help="Instead of INDEX: the id of a ledger transfer.")] = "",
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to write; by default CONSORTIUM-INDEX.tlog-proof.")
    ] = None,
    tiles: Annotated[
        Path | None, typer.Option(help="Prove from published tiles (with entries) instead of the store.")
    ] = None,
    home: Home = HOME,
    store: Store = "",
    as_json: Json = False,
) -> None:
    """Write one record with its proof into one file, which anybody with the log's key can check offline.

    \b
    Example:
      hansa journal prove 1204
      hansa journal prove --transfer settle/run-1/3/berlin --out berlin.tlog-proof
    """
    from hansa import journals

    proven = journals.prove(home, store, tiles, index=index, transfer=transfer)
    path = journals.write_proof(proven, out)
    facts = {
        "log": proven.origin,
        "index": proven.index,
        "size": proven.size,
        "kind": proven.record.kind,
        "file": path,
    }
    text = [
        f"Wrote {path}: record {proven.index} of the {proven.size} of {proven.origin}.",
        f"Check it anywhere: hansa journal verify {path} --key LOG_KEY",
    ]
    answer(facts, text, as_json=as_json)


@app.command("tiles")
def tiles(
    folder: Annotated[Path, typer.Argument(help="What a web server then publishes.")],
    entries: Annotated[
        bool, typer.Option("--entries", help="Also the records themselves, for whoever may read the folder.")
    ] = False,
    home: Home = HOME,
    store: Store = "",
    as_json: Json = False,
) -> None:
    """Publish the journal as static files (C2SP tlog-tiles); run again, only what is new is written.

    \b
    Example:
      hansa journal tiles /srv/www/quay --entries
    """
    from hansa.journals import publish_tiles

    done = publish_tiles(home, store, folder, entries=entries)
    text = f"{folder} holds the journal's first {done.size} records: {done.written} new files, {done.pruned} partial ones removed."
    facts = {
        "folder": folder,
        "size": done.size,
        "written": done.written,
        "pruned": done.pruned,
        "entries": entries,
    }
    answer(facts, text, as_json=as_json)


@app.command("witness")
def witness(
    key: Annotated[Path, typer.Option(help="Secret key to cosign with; `hansa key new` makes one.")],
    log: Annotated[
        list[str], typer.Option(help="Verifier key of a log to watch, or a file with it; repeatable.")
    ],
    listen: Annotated[str, typer.Option(help="Host and port to answer HTTP on.")] = "127.0.0.1:7465",
    memory: Annotated[
        Path, typer.Option(help="Folder that remembers what was cosigned last. Never delete it.")
    ] = Path("witness"),
    as_json: Json = False,
) -> None:
    """Be a witness: cosign a log's checkpoints (C2SP tlog-witness over HTTP) as long as it shows one history.

    Any number of logs; each is asked to send its checkpoints to http://HOST:PORT/add-checkpoint. Ctrl-C stops.

    \b
    Example:
      hansa journal witness --key keys/lookout.key --log quay.pub --listen 0.0.0.0:7465
    """
    from hansa.witnessing import serve_witness

    serve_witness(key, log, listen=listen, memory=memory, as_json=as_json)


@app.command("fsck")
def fsck(
    tiles: Annotated[
        Path | None, typer.Option(help="Also compare with tiles published from this journal.")
    ] = None,
    states: Annotated[
        Path | None,
        typer.Option(
            help="A copy of the coordinator's states/ from before experts changed: what became of them is computed again."
        ),
    ] = None,
    lodged: Annotated[
        list[Path] | None,
        typer.Option("--lodged", help="A ballot that a site keeps (`hansa site lodge`); it has to be there."),
    ] = None,
    home: Home = HOME,
    store: Store = "",
    as_json: Json = False,
) -> None:
    """Audit everything: every hash, every signature, every vote recounted, every amount computed again.

    Trusts neither the disk nor the coordinator, changes nothing, and may run beside it. Ends with exit code 5 when
    there are findings; each names the first record concerned and what to do.

    \b
    Example:
      hansa journal fsck
      hansa journal fsck --home backup --tiles /srv/www/quay
    """
    from hansa import auditing

    report = auditing.audit(home, store, tiles, states, lodged or ())
    answer(auditing.facts(report), auditing.text(report), as_json=as_json)
    if not report.clean:
        raise typer.Exit(FINDINGS)


def _check_file(file: Path, key: str, seat: Path | None, policy: Path | None, *, as_json: bool) -> None:
    from hansa import journals

    found = journals.check(file, key=key, seat=seat, policy=policy)
    witnesses = journals.witnesses_text(found.witnesses)
    text = [
        f"Proven: record {found.index} of the {found.size} of {found.origin}; cosigned by {witnesses}.",
        *journals.readable(found.record),
    ]
    facts = {
        "verified": True,
        "log": found.origin,
        "index": found.index,
        "size": found.size,
        "root": found.root,
        "witnesses": found.witnesses,
        "kind": found.record.kind,
        "at_ms": found.record.at_ms,
        "body": found.record.body.decode("utf-8", "backslashreplace"),
    }
    answer(facts, text, as_json=as_json)
