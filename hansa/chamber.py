"""What a member or the operator can ask the coordinator, as plain calls over one seat.

Owns the translation between views of `commons.views` and the wire. A refusal becomes `Refused`, a coordinator that
does not answer becomes `Unreachable`; both say who acts next.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
from typing_extensions import Self

from commons import charter_file, roll_views, run_views, statement_proof, views, vote_views
from commons.chain import Wanted
from commons.chain_file import ChainFile
from commons.errors import Code, HansaError, Refused, Unreachable
from commons.identity import Seat
from commons.log import Proof, open_proof, proof_text
from commons.names import Digest, RunId
from commons.records import Record
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1.consortium_pb2_grpc import ChamberStub, OperatorStub

VIEWS: dict[str, type[views.View]] = {
    "run": views.RunView,
    "now": run_views.NowView,
    "rounds": run_views.RoundsView,
    "curves": run_views.CurvesView,
    "experts": views.ExpertsView,
    "budgets": views.BudgetsView,
    "disputes": views.DisputesView,
    "proposals": views.ProposalsView,
    "proposal": views.ProposalView,
    "evidence": vote_views.EvidenceView,
    "extension": vote_views.ExtensionView,
    "journal": views.JournalView,
    "charter": views.CharterView,
    "members": roll_views.MembersView,
    "releases": roll_views.ReleasesView,
    "records": roll_views.RecordsView,
    "record": roll_views.RecordView,
    "statement": statement_proof.StatementView,
    "statement-lines": statement_proof.LinesView,
    "statement-proof": statement_proof.ProofView,
}
ANSWER_S = 20.0
"""How long one question waits for its answer."""
RELEASE_S = 300.0
"""A release writes the whole model."""

V = TypeVar("V", bound=views.View)


class Chamber:
    """One connection of one seat. Use as a context manager; safe to share between threads."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self._channel = channel.connect(seat)
        self._chamber = ChamberStub(self._channel)
        self._operator = OperatorStub(self._channel)

    @classmethod
    def at(cls, folder: Path) -> Chamber:
        """Open the seat in `folder`. Raises HansaError when there is none."""
        return cls(Seat.load(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def read(self, kind: type[V], key: str = "") -> V:
        """The view of that type now; `key` names a run or proposal, empty: the current one."""
        name = next(name for name, found in VIEWS.items() if found is kind)
        reply = self._ask(self._chamber.Read, wire.ReadRequest(view=name, key=key))
        return kind.model_validate_json(reply.json)

    def watch(self, kind: type[V], key: str = "") -> Iterator[V]:
        """The view each time it changes, until the caller stops or the coordinator goes (`Unreachable`)."""
        name = next(name for name, found in VIEWS.items() if found is kind)
        try:
            for reply in self._chamber.Watch(wire.ReadRequest(view=name, key=key), wait_for_ready=True):
                yield kind.model_validate_json(reply.json)
        except grpc.RpcError as error:
            raise channel.translate(error) from error
        except ValueError as closed:  # by another thread
            raise Unreachable("this connection is closed") from closed

    def submit(self, note: bytes) -> int:
        """Hand in a note of a member; its journal index. Asked twice: the first index. Raises as `submit_proven`."""
        return self.submit_proven(note)[0].index

    def submit_proven(self, note: bytes) -> tuple[Proof, bytes]:
        """Hand in a note of a member; the proof that it is in the journal, and its record's leaf.

        The receipt is checked: it is only believed with a proof that the log signed for these very bytes.
        Raises HansaError when it proves nothing.
        """
        receipt = self._ask(self._chamber.Submit, wire.NoteRequest(note=note))
        try:
            proof = self._proven(receipt)
            if Record.parse(receipt.leaf).body != note:
                raise ValueError("it is for another note")
        except ValueError as wrong:
            raise HansaError(
                f"the coordinator at {self.seat.address} says it took the note, but its receipt proves nothing ({wrong}); "
                "keep the note and tell the other members"
            ) from wrong
        return proof, receipt.leaf

    def chain(self, wanted: Wanted) -> ChainFile:
        """What proves the charter in force, as the coordinator shows and signs it. Raises HansaError when it is no proof."""
        request = wire.ChainRequest(
            have_size=wanted.have_size, known_version=wanted.known_version, whole=wanted.whole
        )
        shown = self._ask(self._chamber.Chain, request, timeout_s=RELEASE_S)
        entries = [(entry.index, entry.leaf, tuple(entry.path)) for entry in shown.entries]
        try:
            founding = charter_file.from_canonical(self.seat.charter)
            return ChainFile.of(founding, shown.checkpoint, entries, shown.shown, whole=wanted.whole)
        except ValueError as wrong:
            raise HansaError(
                f"the coordinator at {self.seat.address} shows what is no proof ({wrong}); tell the other members"
            ) from wrong

    def start_run(self, seed: Path, run: str = "") -> RunId:
        """Open a run from a seed folder on the coordinator's machine; `run` empty: named after the last one.

        It has its name before it is asked for, so that a repeat, however late, opens no other.
        """
        request = wire.StartRunRequest(run=run or self._next_run(), seed=str(seed.resolve()))
        return RunId(self._ask(self._operator.StartRun, request, timeout_s=RELEASE_S).run)

    def stop_run(self, run: str, reason: str) -> None:
        """`run` empty: the last one that was started."""
        name = run or self.read(views.RunView).run
        self._ask(self._operator.StopRun, wire.StopRunRequest(run=name, reason=reason))

    def make_release(self, folder: Path, run: str = "") -> tuple[Path, Digest]:
        """Write and sign a release into `folder`: its path and the digest of its manifest."""
        request = wire.ReleaseRequest(run=run, folder=str(folder.resolve()))
        reply = self._ask(self._operator.MakeRelease, request, timeout_s=RELEASE_S)
        return Path(reply.path), Digest(reply.digest)

    def reverse_charge(
        self, token: str, settle: str, amount_micro: int | None, reason: str
    ) -> tuple[int, dict[str, Any]]:
        """Give back some or all (`amount_micro` None) of a charge: journal index and facts of the reversal.

        Asked twice with the same token: the first ones. The receipt is checked as `submit` does.
        """
        request = wire.ReverseChargeRequest(
            token=token, settle=settle, amount_micro=amount_micro, reason=reason
        )
        receipt = self._ask(self._operator.ReverseCharge, request)
        try:
            index = self._proven(receipt).index
            facts = Record.parse(receipt.leaf).facts
            if (facts.get("id"), facts.get("reverses")) != (f"reversal/{token}", settle):
                raise ValueError("it is for another transfer")
        except ValueError as wrong:
            raise HansaError(
                f"the coordinator at {self.seat.address} says it reversed {settle}, but its receipt proves nothing "
                f"({wrong}); look for reversal/{token} in the journal"
            ) from wrong
        return index, facts

    def _proven(self, receipt: wire.Receipt) -> Proof:
        """Raises ValueError when the receipt proves nothing."""
        text = proof_text(receipt.index, receipt.path, receipt.checkpoint)
        return open_proof(text, receipt.leaf, self.seat.log_verifier)

    def _next_run(self) -> str:
        """``run-1``, or the name of the last run with its number, or 1, raised by one."""
        try:
            last = self.read(views.RunView).run
        except Refused as refused:
            if refused.refusal.code is Code.NO_RUN:
                return "run-1"
            raise
        stem, hyphen, number = last.rpartition("-")
        return f"{stem}-{int(number) + 1}" if hyphen and number.isdecimal() else f"{last}-2"

    def _ask(self, method: Any, request: Any, timeout_s: float = ANSWER_S) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise channel.translate(error) from error
