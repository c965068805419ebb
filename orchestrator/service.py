"""The site link, the operator's desk and enrolment on the wire.

Translates between messages and the desk; every rule is elsewhere. A Work stream is driven by the bell: a site
learns of its next assignment in the time of one message, and nothing polls.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import grpc

from commons.errors import Code, HansaError, Refusal
from commons.experts.map import ExpertMap
from commons.experts.settings import SettingError
from commons.masking import Step
from commons.names import RunId, SiteId
from commons.records import Record
from commons.wire.channel import caller, refuse
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1.consortium_pb2_grpc import EnrolmentServicer, OperatorServicer, SiteLinkServicer
from commons.work import ProbeNote
from governance.reversing import decide_operator_reversal, reversal_id
from orchestrator import release
from orchestrator.board import STATES
from orchestrator.charges import TopUp
from orchestrator.desk import Desk
from orchestrator.enrolment import Enrolments
from orchestrator.evaluation import decide_evaluation
from orchestrator.facts import run_fact
from orchestrator.judging import decide_measurement
from orchestrator.live import WORKING, Beat
from orchestrator.masking import Said
from orchestrator.orders import Order, order_for, runs_over
from orchestrator.round import finishing_records
from orchestrator.seed import begin
from orchestrator.streams import Streams
from orchestrator.topups import top_up
from orchestrator.unmasked import converse
from orchestrator.witnesses import Witnesses

_ALIVE_CHECK_S = 15.0
RUN_CHARS_MAX = 64
_RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class SiteLink(SiteLinkServicer):
    """A caller only ever speaks for the site in its certificate."""

    def __init__(self, desk: Desk, witnesses: Witnesses, streams: Streams) -> None:
        self._desk, self._witnesses, self._streams = desk, witnesses, streams

    def Work(self, request: wire.WorkRequest, context: grpc.ServicerContext) -> Iterator[wire.Directive]:
        desk, site = self._desk, self._site(context)
        context.add_callback(desk.bell.ring)
        with desk.live.stream(site) as stream:
            shown: Order | None = None
            over_before = runs_over(desk, but=(request.run, desk.live.of(site).beat.run))
            while context.is_active() and not desk.stopping.is_set():
                strokes = desk.bell.strokes
                if not desk.live.is_newest(site, stream):
                    context.abort(grpc.StatusCode.ABORTED, f"a newer stream of site {site} took over")
                order = order_for(desk, site, over_before=over_before)
                if order != shown:
                    shown = order
                    yield self._directive(order)
                desk.bell.wait_beyond(strokes, _ALIVE_CHECK_S)

    def Heartbeat(self, request: wire.Beat, context: grpc.ServicerContext) -> wire.BeatReply:
        site = self._site(context)
        state = request.state if request.state in STATES else "idle"
        beat = Beat(
            run=request.run[:RUN_CHARS_MAX],
            round=request.round,
            state=state,
            why=request.why,
            step=request.step,
            steps=request.steps,
            tokens_per_s=request.tokens_per_s if math.isfinite(request.tokens_per_s) else 0.0,
            loss=request.loss if math.isfinite(request.loss) else None,
            bytes_up=request.bytes_up,
            bytes_down=request.bytes_down,
            model_bytes=request.model_bytes,
        )
        self._desk.live.beat(site, beat)
        order = order_for(self._desk, site, over_before=())
        wanted = order.assignment is not None and (order.run, order.round) == (request.run, request.round)
        return wire.BeatReply(stop=state in WORKING and bool(request.run) and not wanted)

    def UploadOffset(self, request: wire.UploadKey, context: grpc.ServicerContext) -> wire.UploadPosition:
        found = self._streams.position(self._site(context), request)
        if isinstance(found, Refusal):
            refuse(context, found)
        return found

    def Upload(  # type: ignore[override]  # raw bytes both ways, see `add_raw_handlers`
        self, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        for reply in self._streams.upload(self._site(context), messages, context.add_callback):
            if isinstance(reply, Refusal):
                refuse(context, reply)
            yield reply.SerializeToString()

    def Fetch(  # type: ignore[override]  # raw bytes both ways
        self, request: bytes, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        try:
            for frame in self._streams.fetch(self._site(context), request):
                if isinstance(frame, Refusal):
                    refuse(context, frame)
                yield frame
        except HansaError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    def Evaluate(self, request: wire.NoteRequest, context: grpc.ServicerContext) -> wire.Receipt:
        consortium, site = self._desk.consortium, self._site(context)
        with consortium.lock:
            known: list[int] = []

            def decide(now_ms: int) -> list[Record] | Refusal:
                key, note = consortium.members.site_key(site), request.note
                if note.startswith(ProbeNote.KIND.encode()):
                    found = decide_measurement(self._desk, site, key, note, now_ms)
                else:
                    found = decide_evaluation(self._desk.runs, consortium.charter, site, key, note, now_ms)
                if isinstance(found, int):
                    known.append(found)
                    return []
                return found

            done = consortium.commit(decide)
            if isinstance(done, Refusal):
                refuse(context, done)
            receipt = consortium.receipt((*done, *known)[0])
        return wire.Receipt(**vars(receipt))

    def TopUp(self, request: wire.TopUpRequest, context: grpc.ServicerContext) -> wire.TopUpReply:
        asked = TopUp(
            site=self._site(context),
            run=RunId(request.run),
            round=request.round,
            lease=request.lease,
            n=request.number,
            amount_micro=request.amount_micro,
        )
        if refusal := top_up(self._desk, asked):
            refuse(context, refusal)
        return wire.TopUpReply()

    def Mask(self, request: wire.MaskRequest, context: grpc.ServicerContext) -> wire.MaskView:
        word = request.WhichOneof("word")
        try:
            shown = converse(
                self._desk,
                self._site(context),
                run=RunId(request.run),
                number=request.round,
                seen=(request.attempt, request.stage),
                said=_said(request, word) if word else None,
                active=context.is_active,
            )
        except HansaError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        if isinstance(shown, Refusal):
            refuse(context, shown)
        deals = [wire.MaskWord(note=deal.note, data=deal.bundle) for deal in shown.deals]
        return wire.MaskView(
            attempt=shown.attempt,
            stage=shown.stage,
            keys=shown.keys,
            deals=deals,
            survivors=shown.survivors,
            agreements=shown.agreements,
        )

    def Witness(
        self, request: wire.WitnessRequest, context: grpc.ServicerContext
    ) -> Iterator[wire.WitnessOffer]:
        site = self._site(context)
        if refusal := self._witnesses.behind(site, request.size):
            refuse(context, refusal)
        context.add_callback(self._desk.bell.ring)
        try:
            for offer in self._witnesses.offers(site, request.size, context.is_active):
                yield wire.WitnessOffer(old=offer.old, checkpoint=offer.note, consistency=offer.proof)
        except HansaError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    def Cosign(self, request: wire.CosignRequest, context: grpc.ServicerContext) -> wire.CosignReply:
        try:
            refusal = self._witnesses.cosign(self._site(context), request.size, request.line)
        except HansaError as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        if refusal is not None:
            refuse(context, refusal)
        return wire.CosignReply()

    def _directive(self, order: Order) -> wire.Directive:
        epoch = self._desk.consortium.journal.epoch
        if order.assignment is None:
            return wire.Directive(epoch=epoch, wait=wire.Wait(reason=order.why, finished=order.finished))
        note = self._desk.signer.sign(order.assignment.text)
        return wire.Directive(epoch=epoch, assignment=wire.Assignment(note=note))

    def _site(self, context: grpc.ServicerContext) -> SiteId:
        subject = caller(context)
        name = SiteId(subject.site or "")
        with self._desk.consortium.lock:
            entry = self._desk.consortium.charter.site(name)
            enrolled = name in self._desk.consortium.members.enrolled
        if entry is None or entry.partner != subject.partner or not enrolled:
            message = f"{subject} is not enrolled under the charter in force; its partner joins it again"
            refuse(context, Refusal(Code.NOT_ENROLLED, message))
        return name


def _said(request: wire.MaskRequest, word: str) -> Said:
    match word:
        case "keys":
            return Said(Step.KEYS, request.keys)
        case "deal":
            return Said(Step.SHARES, request.deal.note, request.deal.data)
        case "complaint":
            return Said(Step.MASKED, request.complaint, complains=True)
        case "agreement":
            return Said(Step.AGREEMENT, request.agreement)
        case _:
            return Said(Step.REVEAL, request.reveal.note, request.reveal.data)


class Operator(OperatorServicer):
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def StartRun(self, request: wire.StartRunRequest, context: grpc.ServicerContext) -> wire.StartRunReply:
        started = self._start(request)
        if isinstance(started, Refusal):
            refuse(context, started)
        return wire.StartRunReply(run=started)

    def StopRun(self, request: wire.StopRunRequest, context: grpc.ServicerContext) -> wire.StopRunReply:
        desk = self._desk

        def decide(now_ms: int) -> list[Record] | Refusal:
            if not request.run:
                return Refusal(Code.REQUEST_INVALID, "which run? its name must be given to stop it")
            run = desk.runs.find(request.run)
            if isinstance(run, Refusal):
                return run
            if run.finished:
                return []
            reason = request.reason or "stopped by the operator"
            return finishing_records(desk, run, "stopped", reason, now_ms)

        done = desk.consortium.commit(decide)
        if isinstance(done, Refusal):
            refuse(context, done)
        return wire.StopRunReply()

    def MakeRelease(self, request: wire.ReleaseRequest, context: grpc.ServicerContext) -> wire.ReleaseReply:
        with self._desk.consortium.lock:
            run = self._desk.runs.find(request.run)
        if isinstance(run, Refusal):
            refuse(context, run)
        made = release.make(self._desk, run, Path(request.folder))
        if isinstance(made, Refusal):
            refuse(context, made)
        return wire.ReleaseReply(path=str(made.folder), digest=made.manifest)

    def ReverseCharge(
        self, request: wire.ReverseChargeRequest, context: grpc.ServicerContext
    ) -> wire.Receipt:
        consortium = self._desk.consortium

        def decide(now_ms: int) -> list[Record] | Refusal:
            return decide_operator_reversal(
                consortium.ledger,
                token=request.token,
                settle=request.settle,
                amount_micro=request.amount_micro if request.HasField("amount_micro") else None,
                reason=request.reason,
                now_ms=now_ms,
            )

        with consortium.lock:
            done = consortium.commit(decide)
            if isinstance(done, Refusal):
                refuse(context, done)
            index = done[0] if done else consortium.claims.reversal(reversal_id(request.token))
            assert index is not None, "a reversal that adds nothing stands in the journal"
            receipt = consortium.receipt(index)
        return wire.Receipt(**vars(receipt))

    def _start(self, request: wire.StartRunRequest) -> RunId | Refusal:
        desk = self._desk
        with desk.consortium.lock:
            run = RunId(request.run)
            charter, active = desk.consortium.charter, desk.runs.active
        if active is not None and active.run == run:
            return active.run
        if not _RUN_ID.fullmatch(run):
            what = "lower-case letters, digits and hyphens, at most 64"
            return Refusal(Code.REQUEST_INVALID, f"a run is named with {what}, not {run[:80]!r}")
        try:
            expert_map = ExpertMap.from_charter(charter)
        except SettingError as wrong:
            return Refusal(Code.REQUEST_INVALID, f"no run can train the charter's model: {wrong}")
        state = begin(Path(request.seed), charter, expert_map, desk.store)
        if isinstance(state, Refusal):
            return state

        def decide(now_ms: int) -> list[Record] | Refusal:
            if desk.runs.active is not None:
                name = desk.runs.active.run
                return Refusal(
                    Code.RUN_EXISTS, f"run {name} is going on; the operator stops it or waits for its end"
                )
            if run in desk.runs.by_id:
                return Refusal(
                    Code.RUN_EXISTS, f"there was a run {run}; the operator names the new one otherwise"
                )
            opened = run_fact(
                now_ms,
                run=run,
                rounds=charter.learning.rounds,
                state=state,
                charter_version=charter.version,
                expert_map=expert_map.digest,
            )
            return [opened]

        done = desk.consortium.commit(decide)
        return done if isinstance(done, Refusal) else run


class Enrolment(EnrolmentServicer):
    """On its own port: the caller has no certificate yet."""

    def __init__(self, enrolments: Enrolments) -> None:
        self._enrolments = enrolments

    def Enrol(self, request: wire.EnrolRequest, context: grpc.ServicerContext) -> wire.EnrolReply:
        done = self._enrolments.enrol(request.invite, request.tls_csr, request.delegation)
        if isinstance(done, Refusal):
            refuse(context, done)
        return wire.EnrolReply(
            certificate=done.certificate,
            authority=done.authority,
            charter=done.charter,
            founding=done.founding,
        )
