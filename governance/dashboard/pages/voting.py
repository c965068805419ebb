"""Voting: the exact text of a ballot, signed in this browser or elsewhere, handed in, and its receipt.

A signature makes a ballot count, never a sign-in; the page lets through only what its viewer could have meant: a ballot
of the own organisation, on the proposal it was shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from commons.ballots import Ballot
from commons.errors import Code, Refusal, Refused
from commons.log import hash_text
from commons.motions import BallotKey
from commons.notes import NOTE_BYTES_MAX, Note, NoteError, base64_text, parse
from commons.roll_views import MembersView, MemberView
from commons.views import ProposalView
from commons.vote_views import ExtensionView
from governance.casting import ballot_text
from governance.dashboard.office import Receipt
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.pages.proposals import ask, dry_run, own_ballot, why_not
from governance.dashboard.pages.roadmap import chosen
from governance.dashboard.viewer import Role, Viewer, require

FORM_BYTES_MAX = 4 * NOTE_BYTES_MAX
"""A note in a form is written with escapes."""
DAYS = 90
"""For how long a ballot key is proposed to last."""


def ballot_context(hall: Hall, request: Request) -> Context:
    """The text of the ballot that was asked for, fresh each time."""
    viewer = require(request, Role.VOTER)
    p = ask(hall, request.path_params["which"])
    if why := why_not(p, viewer):
        raise HTTPException(409, why)
    choice = chosen(p, request.query_params)
    if isinstance(choice, Refusal):
        raise Refused(choice)
    shown = dry_run(hall, p)
    text = ballot_text(hall.office.consortium, str(viewer.partner), p, choice)
    return {
        "p": p,
        "label": f"P-{p.number:04d}",
        "choice": choice,
        "text": text,
        "preview": None if isinstance(shown, str) else shown,
        "own": own_ballot(p, viewer),
        "delegated": delegated(hall, str(viewer.partner)),
        "log_key": hall.office.log_key,
    }


def key_context(hall: Hall, request: Request) -> Context:
    viewer = require(request, Role.VOTER)
    if viewer.partner is None:
        raise HTTPException(403, "You belong to no member, and only members vote.")
    return {
        "days": DAYS,
        "expires_ms": time.time_ns() // 1_000_000 + DAYS * 86_400_000,
        "log_key": hall.office.log_key,
        "delegated": delegated(hall, viewer.partner),
    }


def delegated(hall: Hall, member: str) -> MemberView:
    """To which key the member has delegated its ballots, until when."""
    members = hall.office.read(MembersView).members
    found = next((m for m in members if m.member == member), None)
    if found is None:
        raise HTTPException(403, f"{member} is no member of {hall.office.consortium} any more.")
    return found


def hand_in_ballot(hall: Hall, viewer: Viewer, p: ProposalView, data: bytes) -> tuple[Ballot, Receipt]:
    """Raises Refused, with the chamber's code, for what is not the viewer's ballot on this proposal."""
    note = _note(data)
    try:
        ballot = Ballot.from_note(note)
    except NoteError as error:
        raise Refused(Refusal(Code.NOTE_MALFORMED, f"the note is no ballot: {error}")) from None
    if ballot.voter != viewer.partner:
        message = f"the ballot is {ballot.voter}'s, you are signed in for {viewer.partner}"
        raise Refused(Refusal(Code.NOT_AUTHORISED, message))
    if ballot.proposal != p.id:
        message = f"the ballot is on another proposal than P-{p.number:04d}; look at it again and vote again"
        raise Refused(Refusal(Code.BALLOT_MISMATCH, message))
    return ballot, hall.office.submit(data)


def hand_in_key(hall: Hall, viewer: Viewer, data: bytes) -> tuple[BallotKey, Receipt]:
    """Raises Refused for what is not the viewer's organisation's delegation of its ballots."""
    try:
        delegation = BallotKey.from_note(_note(data))
    except NoteError as error:
        raise Refused(Refusal(Code.NOTE_MALFORMED, f"the note delegates no ballots: {error}")) from None
    if delegation.member != viewer.partner:
        message = f"the note speaks for {delegation.member}, you are signed in for {viewer.partner}"
        raise Refused(Refusal(Code.NOT_AUTHORISED, message))
    return delegation, hall.office.submit(data)


def _note(data: bytes) -> Note:
    try:
        return parse(data)
    except NoteError as error:
        raise Refused(Refusal(Code.NOTE_MALFORMED, f"the note cannot be read: {error}")) from None


async def note_of(request: Request) -> bytes:
    """A signed note from a form's field `note`, or as the body itself. Raises HTTPException 413.

    A form writes every line end as CR LF and may lose the last one (HTML, 4.10.22); a note knows LF only.
    """
    size = request.headers.get("content-length", "")
    if not size.isdecimal() or int(size) > FORM_BYTES_MAX:
        raise HTTPException(413, f"A note has at most {NOTE_BYTES_MAX} bytes.")
    body = await request.body()
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return body
    try:
        fields = dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=4))
    except ValueError:
        raise HTTPException(400, "That form cannot be read; send it from this dashboard's page.") from None
    text = fields.get("note", "").replace("\r\n", "\n")
    return (text if text.endswith("\n") else text + "\n").encode()


def receipt_facts(receipt: Receipt) -> dict[str, Any]:
    """What the page checks by itself: index, leaf, path and checkpoint, bytes as base64."""
    return {
        "index": receipt.proof.index,
        "leaf": base64_text(receipt.leaf),
        "path": [hash_text(value) for value in receipt.proof.path],
        "checkpoint": receipt.proof.note.decode(),
    }


def routes(hall: Hall) -> Sequence[BaseRoute]:
    async def cast(request: Request) -> Response:
        viewer = require(request, Role.VOTER)
        p = await run_in_threadpool(ask, hall, request.path_params["which"])
        data = await note_of(request)
        ballot, receipt = await run_in_threadpool(hand_in_ballot, hall, viewer, p, data)
        facts = {"choice": ballot.choice, "proposal": p.id, "receipt": receipt_facts(receipt)}
        back = (f"/proposals/{p.number}", f"P-{p.number:04d} {p.title}")
        return answer(request, f"Your ballot is in the journal: {ballot.choice}.", facts, back)

    async def delegate(request: Request) -> Response:
        viewer = require(request, Role.VOTER)
        data = await note_of(request)
        delegation, receipt = await run_in_threadpool(hand_in_key, hall, viewer, data)
        facts = {
            "key": delegation.key,
            "expires_ms": delegation.expires_ms,
            "receipt": receipt_facts(receipt),
        }
        return answer(
            request, f"{delegation.member}'s ballots are delegated.", facts, ("/voting", "Voting key")
        )

    def answer(request: Request, said: str, facts: dict[str, Any], back: tuple[str, str]) -> Response:
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"said": said, **facts})
        return hall.render(
            request, "receipt.html.j2", said=said, receipt=facts["receipt"], facts=json.dumps(facts["receipt"]), back=back,
            log_key=hall.office.log_key,
        )  # fmt: skip

    async def extension(request: Request) -> Response:
        sizes = request.query_params.get("sizes", "")
        return JSONResponse((await run_in_threadpool(hall.office.read, ExtensionView, sizes)).model_dump())

    return [
        Route("/proposals/{which}/ballots", cast, methods=["POST"]),
        Route("/voting/keys", delegate, methods=["POST"]),
        Route("/voting/extension.json", extension),
    ]


BALLOT = Page("/proposals/{which}/ballot", "Your ballot", "ballot.html.j2", ballot_context, listed=False)
KEY = Page("/voting", "Voting key", "voting.html.j2", key_context, listed=False, more=routes)
