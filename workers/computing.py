"""The work of one order: its base fetched, the training or evaluation watched, the result sealed and signed.

Owns what lies between an order that was verified and bytes that can be sent; a round sealed before is the outbox's.
Knows nothing of when to try again: whatever is raised here, the same order may be carried out anew.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from commons.charter import Charter
from commons.codec import CELL, FRAME, add_frame, frame_bytes
from commons.errors import HansaError
from commons.experts.map import Slice
from commons.names import Digest, SiteId
from commons.notes import Signer
from commons.states import StateStore
from commons.updates import UpdateManifest
from commons.verdict import LOSS_MAX
from commons.work import EvaluationNote, ProbeNote
from workers import seal
from workers.allowance import Allowance
from workers.link import Link
from workers.masks import SiteMasks
from workers.meter import Meter
from workers.outbox import Outbox, Sealed
from workers.spending import Spending
from workers.status import Status
from workers.training import Progress, Training, Wish
from workers.verify import Order

log = logging.getLogger("hansa.site")


class Computing:
    """One order at a time."""

    def __init__(
        self,
        link: Link,
        status: Status,
        store: StateStore,
        outbox: Outbox,
        trainer: Training,
        meter: Meter,
        allowance: Allowance,
        signer: Signer,
        masks: SiteMasks,
        spending: Spending,
        stop: threading.Event,
        tokenizer: Path,
    ) -> None:
        """`tokenizer`: where the charter's is kept, if it names one."""
        self._link, self._status, self._store, self._outbox = link, status, store, outbox
        self._trainer, self._meter, self._allowance = trainer, meter, allowance
        self._signer, self._masks, self._spending, self._stop = signer, masks, spending, stop
        self._name, self._tokenizer = SiteId(signer.name.partition("/")[2]), tokenizer

    def train(self, order: Order) -> Sealed:
        """One round, whole or as far as what is held for it goes; durable on return.

        Raises Abandoned when the coordinator no longer wants it, HansaError with the reason it cannot be.
        """
        note, charter = order.note, order.charter
        base = self._fetch(order, order.exchange.held(self._name))
        steps = charter.learning.steps_in(note.round)
        log.info("round %d: training %d steps from %s", note.round, steps, note.base[:19])
        self._status.set(state="training", why="", steps=steps)
        self._allowance.begin(order)
        trained = self._trainer.train(
            note.run,
            note.round,
            charter,
            base,
            not_before_ms=self._meter.ended_ms,
            watch=lambda progress: self._watch(order, progress),
        )
        self._meter.take(note.run, note.round, trained.usage)
        if charter.learning.overlap_steps and trained.steps == steps and note.round < note.rounds:
            # Under the charter that is verified; should the next order be under another, it is begun anew.
            self._trainer.ahead(note.run, note.round + 1, charter, not_before_ms=self._meter.ended_ms)
        short = "" if trained.steps == steps else f"ended after {trained.steps} of {steps} steps"
        why = f"{short}: {self._allowance.exhausted or 'the hold was used up'}" if short else ""
        self._status.set(
            state="sealing",
            why=why,
            step=trained.steps,
            loss=_told(charter, trained.loss),
            model_bytes=trained.model_bytes,
        )
        return self._seal(order, trained, base, why)

    def _seal(self, order: Order, trained: seal.Trained, base: dict[str, seal.Array], why: str) -> Sealed:
        note, charter = order.note, order.charter
        entry = charter.site(self._name)
        assert entry is not None, "an order for this site is under a charter that has it"
        masking = self._masks.masking(order, lambda: self._stands(order))
        noising = self._spending.noising(note, charter)
        with self._outbox.draft(note) as folder:
            manifest = seal.pack(
                trained,
                base=base,
                residual=self._outbox.residual(note, order.expert_map),
                exchange=order.exchange,
                site=self._name,
                folder=folder,
                masking=masking,
                noising=noising,
            )
            if noising is not None:
                self._spending.count(note, charter, manifest.payload_digest)
            update, used = seal.sign(
                note,
                trained,
                manifest,
                device=entry.device,
                signer=self._signer,
                losses=noising is None,
                experts=() if noising is not None or masking is not None else order.expert_map.experts,
            )
            what = f"trained, loss {trained.loss:.4f}, update of {manifest.payload_bytes} bytes"
            log.info("round %d: %s%s", note.round, what, f" ({why})" if why else "")
            return self._outbox.seal(note, folder, update=update, usage=used, manifest=manifest.to_bytes())

    def evaluate(self, order: Order) -> bytes:
        """A signed hansa-evaluation/v1 note of the order's state on this site's held-out text. Raises as `train`."""
        note = order.note
        state = self._fetch(order, order.expert_map.slices)
        log.info("evaluating %s on the held-out text", note.base[:19])
        self._status.enter("training", "evaluating")
        loss, size = self._trainer.evaluate(
            note.run, order.charter, state, watch=lambda progress: self._watch(order, progress)
        )
        entry = order.charter.site(self._name)
        assert entry is not None, "an order for this site is under a charter that has it"
        said = EvaluationNote(
            consortium=note.consortium,
            run=note.run,
            site=note.site,
            state=note.base,
            domain=entry.domain,
            bytes=size,
            loss=loss,
        )
        log.info("held-out loss of the consortium's model: %.4f nats per byte", loss)
        return self._signer.sign(said.text)

    def probe(self, order: Order) -> bytes:
        """A signed hansa-probe/v1 note of the order's state on the charter's probe. Raises as `train`."""
        note, charter = order.note, order.charter
        state = self._fetch(order, order.exchange.held(self._name))
        self._status.enter("training", "measuring a state on the probe")
        losses = self._trainer.probe(
            note.run, charter, state, watch=lambda progress: self._watch(order, progress)
        )
        said = ProbeNote(
            consortium=note.consortium,
            run=note.run,
            round=note.round,
            site=note.site,
            probe=charter.probe.text,
            state=note.base,
            losses=tuple(min(loss, LOSS_MAX) if loss >= 0 else LOSS_MAX for loss in losses),
        )
        log.info("round %d: probe loss of %s: %.4f nats per byte", note.round, note.base[:19], said.loss)
        return self._signer.sign(said.text)

    def anticipate(self, order: Order, sealed: Sealed) -> None:
        """Keep what the coordinator must compute for this site's own experts: base + delta.

        States are addressed by content, so a coordinator that computes otherwise costs a download, no more.
        """
        base = Digest(order.note.base)
        if not order.exchange.owners_keep or not order.exchange.due:
            return
        blobs = self._store.manifest(base)
        own = {part.name: part for part in order.expert_map.owned_by(self._name)}
        weights, scratch = np.empty(FRAME, np.float32), np.empty(CELL, np.float32)
        with sealed.payload.open("rb") as payload, self._store.writer() as ahead:
            for part in UpdateManifest.from_bytes(sealed.manifest).parts:
                if part.name not in own:
                    continue
                payload.seek(part.offset)
                size = own[part.name].size
                new = ahead.slice(part.name, part.shape)
                with self._store.open(blobs[part.name]) as old:
                    for first in range(0, size, FRAME):
                        count = min(FRAME, size - first)
                        data = payload.read(frame_bytes(part.plain, count))
                        block = weights[:count]
                        old.read_into(first, block)
                        add_frame(part.plain, data, count, 1.0, block, scratch)
                        new.write(block)
                new.close()
            ahead.publish()

    def _fetch(self, order: Order, parts: Sequence[Slice]) -> dict[str, seal.Array]:
        """These slices of the order's base. Older states make room for it."""
        self._status.enter("fetching")
        self._link.tokenizer(order.charter.model.tokenizer, self._tokenizer)
        base = Digest(order.note.base)
        self._link.fetch(base, [])
        self._store.prune([base])
        self._link.fetch(base, [part.name for part in parts])
        manifest = self._store.manifest(base)
        for part in parts:
            if manifest[part.name].shape != part.shape:
                raise HansaError(
                    f"{part.name} of state {base} has shape {manifest[part.name].shape}, the expert map says "
                    f"{part.shape}; the coordinator's operator must check the run's seed model"
                )
        return {part.name: self._store.map(manifest[part.name]) for part in parts}

    def _watch(self, order: Order, progress: Progress) -> Wish:
        """Show the progress; whether the order still stands, and what is held for it suffices."""
        self._status.set(
            why=progress.why,
            step=progress.step,
            tokens_per_s=progress.tokens_per_s,
            loss=_told(order.charter, progress.loss),
        )
        if not self._stands(order):
            return Wish.ABANDON
        if order.note.work != "train" or self._allowance.suffices(progress.step, progress.device_ms):
            return Wish.GO_ON
        self._status.set(why=self._allowance.exhausted)
        return Wish.FINISH

    def _stands(self, order: Order) -> bool:
        latest = self._link.latest
        if self._stop.is_set() or self._link.unwanted(order.note.run, order.note.round):
            return False
        if latest is None or latest.order in (None, order.data):
            # A coordinator that starts again may say `wait` before it says the same order again.
            return latest is None or not latest.finished
        return False


def _told(charter: Charter, loss: float | None) -> float | None:
    """What heartbeats say of a loss: nothing where updates are noised, as it is of the text without noise."""
    return None if charter.privacy.mode == "dp" else loss
