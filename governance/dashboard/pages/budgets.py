"""Budgets: who has what, how fast it goes, what it costs; and a partner's own bill, to check and to take away."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Route

from commons.errors import HansaError
from commons.notes import NoteError, Verifier
from commons.run_views import NowView
from commons.statement_proof import Bundle
from commons.views import BudgetsView, BudgetView, CharterView, DisputesView
from commons.written import money
from governance.burndown import forecast_of, levels
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.pages.scene import charter_in_force, charter_of, now_ms, rounds_ahead
from governance.dashboard.svg import stack
from governance.dashboard.viewer import Role, Viewer, require, require_bill
from governance.forecast import Forecast
from governance.statements.bill import FORMATS, examine, fetch_bundle, read_statement
from governance.statements.note_page import statement_page

CHARGES_SHOWN = 40
FILE_BYTES_MAX = 32 * 2**20
SUFFIXES = {"note": "txt", "focus": "csv", "hledger": "journal", "beancount": "beancount", "json": "json"}
_PERIOD = re.compile(r"current|last|[0-9]{4}-([0-9]{2}|q[1-4])")
_PARTNER = re.compile(r"[a-z][a-z0-9-]{0,31}")


def context(hall: Hall, request: Request) -> Context:
    viewer: Viewer = request.state.viewer
    whole, run = hall.feed.latest(BudgetsView), hall.feed.latest(NowView)
    charter, disputes = charter_in_force(hall), hall.feed.latest(DisputesView)
    view = viewer.part_of(whole, charter) if whole else None
    budgets = view.budgets if view else ()

    def concerned(partner: str) -> bool:
        return charter is not None and viewer.may_see_bill(partner, "budgets", charter)

    rounds, now = rounds_ahead(run), now_ms()
    found = {b.partner: forecast_of(b, view, rounds, now) for b in budgets} if view else {}
    chosen = request.query_params.get("partner") or viewer.partner or (budgets[0].partner if budgets else "")
    return {
        "view": view,
        "run": run,
        "bars": [_bar(b, max((_whole(b) for b in budgets), default=1)) for b in budgets],
        "forecasts": [found[b.partner] for b in budgets],
        "chosen": chosen if chosen in found else "",
        "burndown": _burndown(found[chosen]) if chosen in found else None,
        "bills": [
            b.partner for b in budgets if charter and viewer.may_see_bill(b.partner, "statements", charter)
        ],
        "charges": list(reversed(view.charges))[:CHARGES_SHOWN] if view else [],
        "charges_total": view.charges_total if view else 0,
        "disputes": [d for d in reversed(disputes.disputes) if concerned(d.partner) or concerned(d.owner)]
        if disputes
        else [],
        "sponsors": [s for s in charter.sites if s.payer != s.partner] if charter else [],
        "pledges": view.pledges if view else (),
    }


def _whole(budget: BudgetView) -> int:
    return budget.available_micro + budget.held_micro + budget.spent_micro + budget.later_micro


def _bar(budget: BudgetView, most: int) -> Context:
    parts = [(name, getattr(budget, f"{name}_micro")) for name in ("available", "held", "spent", "later")]
    said = ", ".join(f"{name} {money(amount)}" for name, amount in parts)
    return {"budget": budget, "bar": stack(parts, f"{budget.partner}: {said}", total=most)}


def _burndown(found: Forecast) -> Context:
    steps = levels(found)
    now = sum(not level.ahead for level in steps)
    left = [level.left_micro / 1e6 for level in steps]
    behind = [value if n < now else None for n, value in enumerate(left)]
    ahead = [value if n >= now - 1 else None for n, value in enumerate(left)]
    data = {"x": list(range(1, len(left) + 1)), "y": behind, "ahead": ahead, "what": "left", "zero": True}
    return {
        "data": json.dumps(data),
        "steps": len(left),
        "forecast": found,
        "labels": [s.label for s in steps],
    }


def _more(hall: Hall) -> Sequence[BaseRoute]:
    def bill(request: Request) -> HTMLResponse:
        bundle = _fetch(hall, request)
        checks = examine(bundle, _log(hall)).checks
        page = statement_page(read_statement(bundle))
        return hall.render(
            request, "statement.html.j2", page=PAGE, note=bundle.note, text=page, signed=bundle.statement, checks=checks, formats=SUFFIXES,
            countersigned=bundle.countersign is not None,
            earlier=bundle.opening is not None and bundle.note.closed != "yes",
        )  # fmt: skip

    def download(request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in FORMATS:
            raise HTTPException(404, f"A statement can be had as {', '.join(FORMATS)}.")
        bundle = _fetch(hall, request)
        name = f"{bundle.note.partner}-{bundle.note.period}-{kind}.{SUFFIXES[kind]}"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        media = "application/json" if kind == "json" else "text/plain; charset=utf-8"
        return Response(FORMATS[kind](bundle), headers=headers, media_type=media)

    async def verify(request: Request) -> Response:
        """A statement file in the body; the checks as JSON. Any reader may: the file is the reader's."""
        require(request, Role.READER)
        data = await body(request, FILE_BYTES_MAX)
        return Response(await run_in_threadpool(_verified, hall, data), media_type="application/json")

    return (
        Route("/budgets/verify", verify, methods=["POST"]),
        Route("/budgets/{partner}/{period}", bill),
        Route("/budgets/{partner}/{period}/{kind}", download),
    )


def _fetch(hall: Hall, request: Request) -> Bundle:
    partner, period = request.path_params["partner"], request.path_params["period"]
    if not _PARTNER.fullmatch(partner) or not _PERIOD.fullmatch(period):
        raise HTTPException(
            404, "There is no such statement; a period is written 2026-11, 2026-q4, current or last."
        )
    require_bill(request, partner, "statements", charter_of(hall))
    return fetch_bundle(hall.office, _log(hall), partner, period)


def _log(hall: Hall) -> Verifier:
    return Verifier.from_vkey(hall.office.log_key)


def _verified(hall: Hall, data: bytes) -> str:
    try:
        bundle = Bundle.read(data)
        note = bundle.note
    except (ValueError, NoteError) as wrong:
        return json.dumps({"verified": False, "problem": str(wrong), "checks": []})
    try:
        found = examine(bundle, _log(hall))
    except HansaError as wrong:
        return json.dumps({"verified": False, "problem": str(wrong), "checks": []})
    checks = [{"what": check.what, "problem": check.problem} for check in found.checks]
    about = f"{note.partner}, {note.period}"
    return json.dumps(
        {"verified": not found.problem, "problem": found.problem, "about": about, "checks": checks}
    )


async def body(request: Request, most: int) -> bytes:
    """The request's body of at most so many bytes. Raises HTTPException 413 as soon as there are more."""
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > most:
            raise HTTPException(413, f"That is more than the {most:,} bytes this takes.")
    return bytes(found)


PAGE = Page(
    "/budgets",
    "Budgets",
    "budgets.html.j2",
    context,
    (BudgetsView, NowView, DisputesView, CharterView),
    more=_more,
)
