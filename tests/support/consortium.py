"""A consortium in a folder, ready for a coordinator, and sites that speak the wire but only pretend to train."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from safetensors.numpy import save_file

from commons import charter_file
from commons.charter import Charter
from commons.codec import encode
from commons.errors import Refusal
from commons.exchange import Exchange
from commons.experts.map import ExpertMap
from commons.founding import Delegation, Founding
from commons.identity import Invite, Seat, csr, save_signer, tls_key_digest, tls_keypair
from commons.names import Digest, SiteId
from commons.notes import Signer, Verifier, digest, open_note, parse
from commons.states import StateStore, read_manifest
from commons.updates import lay_out
from commons.views import RunView
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1.consortium_pb2_grpc import ChamberStub, EnrolmentStub, OperatorStub, SiteLinkStub
from commons.work import AssignmentNote, EvaluationNote, UpdateNote, UsageNote
from orchestrator.coordinator import NO_MLFLOW, Coordinator

NAME = "hanse"
SITES = ("alder", "birch", "cedar")
"""Every member has a site of the same name."""
MODEL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "moe_intermediate_size": 8,
    "num_experts_per_tok": 2,
}


def signer(name: str) -> Signer:
    return Signer(name, hashlib.sha256(name.encode()).digest())


def charter(**changes: Any) -> Charter:
    """Three members with a site each; `section__key=value` changes one thing."""
    document: dict[str, Any] = {
        "version": 1,
        "consortium": {"name": NAME, "log_key": signer(NAME).vkey},
        "members": tuple({"name": m, "key": signer(m).vkey, "budget_micro": 1_000_000} for m in SITES),
        "sites": tuple(
            {
                "name": name,
                "partner": name,
                "payer": name,
                "domain": f"{name}-text",
                "experts": (f"{name}-0",),
                "device": "cpu",
                "data_statement": f"Written by {name} for tests.",
            }
            for name in SITES
        ),
        "model": {"family": "glm4_moe", "config": MODEL},
        "learning": {
            "rounds": 2,
            "inner_steps": 4,
            "batch_size": 2,
            "sequence_length": 16,
            "learning_rate": 0.01,
        },
        "rounds": {"quorum": 2, "grace_s": 20, "lease_s": 60},
        "rate_card": {"currency": "EUR", "rates": ({"device": "cpu", "micro_per_gflop": 3000},)},
        "voting": {"window_s": 60},
        "release": {"licence": "Apache-2.0"},
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        document[section] = {**document[section], key: value} if key else value
    return Charter.model_validate(document)


def exchange(expert_map: ExpertMap, *, number: int = 1, **learning: Any) -> Exchange:
    """What a round of a charter moves with this map and these values of its `[learning]`."""
    return Exchange(expert_map, charter().learning.model_copy(update=learning), number)


def masking_charter(sites: Sequence[str], *, rounds: int = 2, **rules: Any) -> Charter:
    """These sites, each of a member of its name, under secure aggregation."""
    one = charter().sites[0].model_dump()
    return charter(
        members=tuple({"name": m, "key": signer(m).vkey, "budget_micro": 1_000_000} for m in sites),
        sites=tuple(
            one | {"name": n, "partner": n, "payer": n, "domain": f"{n}-text", "experts": (f"{n}-0",)}
            for n in sites
        ),
        rounds={"quorum": 3, "grace_s": 1, "lease_s": 60} | rules,
        privacy={"mode": "secagg", "secagg": {"clip": 0.125}},
        learning__rounds=rounds,
    )


def budgets(**micro: int) -> tuple[dict[str, Any], ...]:
    """The members' section with these budgets."""
    return tuple({"name": m, "key": signer(m).vkey, "budget_micro": micro.get(m, 1_000_000)} for m in SITES)


def seed_state(of: Charter) -> dict[str, np.ndarray]:
    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], np.uint64)
        return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, np.float32)

    return {s.name: draw(s.name, s.shape) for s in ExpertMap.from_charter(of).slices}


def found(folder: Path, of: Charter) -> Path:
    """A coordinator's home for this charter, signed by all, and a seed model beside it (`folder/seed`)."""
    home = folder / "home"
    (home / "founding").mkdir(parents=True)
    charter_file.write(of, home / "charter.toml")
    save_signer(home / "log.key", signer(NAME))
    named = charter_file.digest(of)
    for member in of.members:
        note = signer(member.name).sign(Founding(NAME, named, member.name).compose())
        (home / "founding" / f"{member.name}.note").write_bytes(note)
    (folder / "seed").mkdir()
    save_file(seed_state(of), folder / "seed" / "model.safetensors")
    return home


def started(home: Path, **options: Any) -> Coordinator:
    coordinator = Coordinator(home, "127.0.0.1:0", mlflow=NO_MLFLOW, **options)
    coordinator.start()
    return coordinator


@contextmanager
def running(home: Path, **options: Any) -> Iterator[Coordinator]:
    coordinator = started(home, **options)
    try:
        yield coordinator
    finally:
        coordinator.stop()


def enrol(coordinator: Coordinator, role: str, name: str, folder: Path) -> Seat:
    """Take the seat that the invite in the coordinator's home offers."""
    note = (coordinator.home / "invites" / f"{role}-{name}.invite").read_bytes()
    invite = Invite.from_note(parse(note))
    tls_key = tls_keypair()
    delegation = b""
    if role == "site":
        key = signer(f"{name}/{name}")
        text = Delegation(NAME, name, name, key.vkey, tls_key_digest(tls_key)).compose()
        delegation = signer(name).sign(text)
    request = wire.EnrolRequest(invite=note, tls_csr=csr(tls_key), delegation=delegation)
    with channel.connect_for_enrolment(invite.enrolment, invite.ca_fingerprint) as opened:
        reply = EnrolmentStub(opened).Enrol(request, timeout=10)
    return Seat.write(
        folder,
        consortium=NAME,
        address=invite.address,
        subject=invite.subject,
        log_key=signer(NAME).vkey,
        tls_key=tls_key,
        certificate=reply.certificate,
        authority=reply.authority,
        charter=reply.charter,
        founding=tuple(reply.founding),
    )


def moved(seat: Seat, address: str) -> Seat:
    """The seat after the coordinator came back on another port."""
    return Seat(**{**vars(seat), "address": address})


@dataclass
class FakeSite:
    """Follows its orders over real gRPC; its deltas depend on site, round and base only."""

    seat: Seat
    of: Charter
    silent: bool = False
    """Takes orders and does nothing."""
    orders: list[AssignmentNote] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    indices: dict[int, int] = field(default_factory=dict)
    """Round -> journal index of the update."""
    finished: threading.Event = field(default_factory=threading.Event)
    ended_ms: int = 0
    """Of its last usage record."""

    def __post_init__(self) -> None:
        self.name = self.seat.subject.site or ""
        self.signer = signer(f"{self.name}/{self.name}")
        self.channel = channel.connect(self.seat)
        self.link, self._chamber = SiteLinkStub(self.channel), ChamberStub(self.channel)
        self._call: Any = None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> FakeSite:
        self._thread.start()
        return self

    def close(self) -> None:
        """Vanish as a killed process does."""
        if self._call is not None:
            self._call.cancel()
        self.channel.close()
        self._thread.join(5)

    def _follow(self) -> None:
        self._call = self.link.Work(wire.WorkRequest(), wait_for_ready=True)
        try:
            for directive in self._call:
                if directive.WhichOneof("what") == "wait":
                    self.waits.append(directive.wait.reason)
                    if directive.wait.finished:
                        self.finished.set()
                    continue
                self.obey(directive.epoch, directive.assignment.note)
        except (grpc.RpcError, ValueError):
            return

    def obey(self, epoch: int, note: bytes) -> None:
        order = AssignmentNote.from_note(open_note(note, [Verifier.from_vkey(self.seat.log_key)]))
        self.orders.append(order)
        if self.silent:
            return
        if order.work == "evaluate":
            self.evaluate(order)
            return
        try:
            self.indices[order.round] = self.upload(epoch, order)
        except grpc.RpcError as error:
            refusal = channel.as_refusal(error)
            if refusal is not None:
                self.refusals.append(refusal)

    def pack(self, order: AssignmentNote, **changes: Any) -> tuple[bytes, bytes, bytes, bytes]:
        """Update note, usage note, manifest, payload. `changes`: fields of the notes, `delta` for all slices, or
        `lay_out` for how slices are encoded."""
        of, deltas = self.charter(order), {}
        moves = Exchange(ExpertMap.from_charter(of), of.learning, order.round)
        codecs = moves.codecs
        for part in moves.uplink(SiteId(self.name)):
            key = hashlib.sha256(f"{self.name}/{order.round}/{order.base}/{part.name}".encode()).digest()[:16]
            draw = np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64)))
            delta = draw.standard_normal(part.shape, np.float32) * np.float32(0.01)
            deltas[part.name] = changes.get("delta", delta)
        kinds = {part.name: part.kind for part in moves.expert_map.slices}
        manifest, payload = (
            changes["lay_out"](deltas)
            if "lay_out" in changes
            else lay_out(
                (n, codecs.of(kinds[n]), d.shape, encode(codecs.of(kinds[n]), d)) for n, d in deltas.items()
            )
        )
        text = manifest.to_bytes()
        learning = of.learning
        tokens = learning.inner_steps * learning.batch_size * learning.sequence_length
        now_ms = time.time_ns() // 1_000_000
        update: dict[str, Any] = {
            "consortium": NAME, "run": order.run, "round": order.round, "site": self.name, "base": order.base,
            "manifest": digest(text), "payload": manifest.payload_digest, "payload_bytes": len(payload),
            "steps": learning.inner_steps, "tokens": tokens, "loss": 2.5, "held_out_loss": 2.25, "routed": "-",
        }  # fmt: skip
        usage: dict[str, Any] = {
            "consortium": NAME, "run": order.run, "round": order.round, "site": self.name, "lease": order.lease,
            "device": "cpu", "device_ids": f"cpu/{self.name}/{self.name}", "precision": "fp32", "energy_j": None,
            "started_ms": max(now_ms - 5, self.ended_ms), "ended_ms": now_ms, "device_ms": 0,
            "steps": learning.inner_steps, "tokens": tokens, "update": manifest.payload_digest, "gflop": 0,
        }  # fmt: skip
        update |= {k: v for k, v in changes.items() if k in update}
        usage |= {k: v for k, v in changes.items() if k in usage}
        self.ended_ms = usage["ended_ms"]
        if "gflop" not in changes:
            usage["gflop"] = moves.gflop(usage["steps"])
        if "device_ms" not in changes:
            usage["device_ms"] = max(0, usage["ended_ms"] - usage["started_ms"])
        return (
            self.signer.sign(UpdateNote(**update).text),
            self.signer.sign(UsageNote(**usage).text),
            text,
            payload,
        )

    def charter(self, order: AssignmentNote) -> Charter:
        """In its version of the order."""
        reply = self._chamber.Read(wire.ReadRequest(view="charter", key=str(order.charter_version)))
        from commons.views import CharterView

        text = CharterView.model_validate_json(reply.json).text
        return charter_file.from_canonical(text.encode())

    def upload(self, epoch: int, order: AssignmentNote, **changes: Any) -> int:
        update, usage, manifest, payload = self.pack(order, **changes)
        return self.send(epoch, update, usage, manifest, payload)

    def send(
        self, epoch: int, update: bytes, usage: bytes, manifest: bytes, payload: bytes, offset: int = 0
    ) -> int:
        header = wire.UploadHeader(epoch=epoch, update=update, usage=usage, manifest=manifest, offset=offset)
        header.lanes = 1
        frames = [payload[i : i + 4096] for i in range(offset, len(payload), 4096)]
        *_, reply = channel.raw_upload(self.channel)(iter([header.SerializeToString(), *frames]), timeout=20)
        return wire.UploadReply.FromString(reply).index - 1

    def fetch(self, digests: list[str], offset: int = 0) -> bytes:
        request = wire.FetchRequest(digests=digests, offset=offset).SerializeToString()
        return b"".join(channel.raw_fetch(self.channel)(request, timeout=20))

    def fetch_state(self, state: str, store: StateStore) -> None:
        manifest = self.fetch([state])
        for blob in read_manifest(manifest).values():
            store.put(self.fetch([blob.digest]))
        assert store.put(manifest) == state

    def evaluate(self, order: AssignmentNote, loss: float = 1.5) -> int:
        note = EvaluationNote(
            consortium=NAME, run=order.run, site=self.name, state=order.base, domain=f"{self.name}-text",
            bytes=4096, loss=loss,
        )  # fmt: skip
        return self.link.Evaluate(wire.NoteRequest(note=self.signer.sign(note.text)), timeout=10).index

    def beat(self, state: str, order: AssignmentNote, why: str = "") -> bool:
        beat = wire.Beat(run=order.run, round=order.round, state=state, why=why, loss=float("nan"))
        return self.link.Heartbeat(beat, timeout=10).stop


@dataclass
class Office:
    """The operator's and the members' side."""

    seat: Seat

    def __post_init__(self) -> None:
        self.channel = channel.connect(self.seat)
        self.chamber, self.operator = ChamberStub(self.channel), OperatorStub(self.channel)

    def start_run(self, seed: Path, run: str = "run-1") -> str:
        return self.operator.StartRun(wire.StartRunRequest(run=run, seed=str(seed)), timeout=20).run

    def run(self, key: str = "") -> RunView:
        reply = self.chamber.Read(wire.ReadRequest(view="run", key=key), timeout=10)
        return RunView.model_validate_json(reply.json)

    def wait(self, until: Any, timeout_s: float = 30) -> RunView:
        """Watch the run until `until(view)`."""
        for reply in self.chamber.Watch(wire.ReadRequest(view="run"), timeout=timeout_s):
            view = RunView.model_validate_json(reply.json)
            if until(view):
                return view
        raise AssertionError("the watch ended")

    def close(self) -> None:
        self.channel.close()


def over(view: RunView) -> bool:
    return view.phase in ("finished", "stopped")


def as_digest(text: str) -> Digest:
    return Digest(text)
