"""Journal: its checkpoint and who cosigned it, a search, and every record with its bytes and the proof that it is there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from commons import notes
from commons.log import proof_text, read_hash
from commons.notes import NoteError, base64_bytes
from commons.records import Kind, Record
from commons.roll_views import RecordsView, RecordView
from commons.views import CharterView, JournalView
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.pages.overview import witnessed
from governance.dashboard.pages.scene import charter_in_force


def context(hall: Hall, request: Request) -> Context:
    journal, charter = hall.feed.latest(JournalView), charter_in_force(hall)
    asked, searched = _asked(request), is_search(request)
    found = hall.office.read(RecordsView, urlencode({n: v for n, v in asked.items() if v}))
    further = found.records[-1].index if len(found.records) and found.searched_from else found.searched_from
    return {
        "journal": journal,
        "witnessed": witnessed(journal, charter),
        "signers": signers(journal.published) if journal and journal.published else [],
        "kinds": sorted(map(str, Kind)),
        "asked": asked,
        "searched": searched,
        "found": found,
        "following": urlencode({**{n: v for n, v in asked.items() if v}, "before": further})
        if further
        else "",
        "log_key": hall.office.log_key,
    }


def _asked(request: Request) -> dict[str, str]:
    return {name: request.query_params.get(name, "") for name in ("kind", "text", "before")}


def is_search(request: Request) -> bool:
    """What a search has found is not looked for again with every record."""
    return any(_asked(request).values())


def signers(checkpoint: str) -> list[str]:
    """Names of the keys under a checkpoint, the log's first."""
    return [signature.name for signature in notes.parse(checkpoint.encode()).signatures]


def _more(hall: Hall) -> Sequence[BaseRoute]:
    def show(request: Request) -> Response:
        found = _record(hall, request)
        leaf = base64_bytes(found.leaf, "the record")
        record = Record.parse(leaf)
        return hall.render(request, "record.html.j2", page=PAGE, found=found, **_readable(record, leaf))

    def proof(request: Request) -> JSONResponse:
        found = _record(hall, request)
        checked = {name: getattr(found, name) for name in ("index", "leaf", "path", "checkpoint")}
        return JSONResponse({**checked, "log_key": hall.office.log_key})

    def tlog_proof(request: Request) -> Response:
        found = _record(hall, request)
        path = [read_hash(line, "a hash") for line in found.path]
        text = proof_text(
            found.index, path, found.checkpoint.encode(), base64_bytes(found.leaf, "the record")
        )
        headers = {"content-disposition": f'attachment; filename="record-{found.index}.tlog-proof"'}
        return Response(text, headers=headers, media_type="text/plain; charset=utf-8")

    def find(request: Request) -> HTMLResponse | RedirectResponse:
        index = request.query_params.get("index", "")
        if not (index.isascii() and index.isdecimal() and len(index) < 16):
            raise HTTPException(400, "A record is found by its index, a whole number from 0.")
        return RedirectResponse(f"/journal/{int(index)}", 303)

    return (
        Route("/journal/find", find),
        Route("/journal/{index:int}/proof.json", proof),
        Route("/journal/{index:int}/tlog-proof", tlog_proof),
        Route("/journal/{index:int}", show),
    )


def _record(hall: Hall, request: Request) -> RecordView:
    return hall.office.read(RecordView, str(request.path_params["index"])[:20])


def _readable(record: Record, leaf: bytes) -> Context:
    """The body as people read it: fields of a note and who signed it, or a fact's JSON set out."""
    try:
        note = notes.parse(record.body)
        signed, text = [s.name for s in note.signatures], note.text
    except NoteError:
        signed, text = [], json.dumps(record.facts, indent=2, ensure_ascii=False)
    return {
        "record": record,
        "signed": signed,
        "text": text,
        "bytes": leaf.decode("utf-8", "replace"),
        "size_": len(leaf),
    }


PAGE = Page(
    "/journal", "Journal", "journal.html.j2", context, (JournalView, CharterView), still=is_search, more=_more
)
