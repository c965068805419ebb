"""The site as a witness: it cosigns each checkpoint of the journal that extends the last one it cosigned.

Owns the site's memory of what it cosigned and the evidence of a journal that showed it two histories. A site that
holds such evidence trains no more until its operator has looked at it. Knows nothing of the wire.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from commons.clock import Clock
from commons.cosignature import Cosigner
from commons.identity import write_file
from commons.log import Checkpoint
from commons.notes import Signer, Verifier, parse
from commons.witness import FileMemory, Witness, WitnessRefusal

log = logging.getLogger("hansa.site")

EVIDENCE_MAX = 8
"""Forks kept; the first ones say enough."""


class SiteWitness:
    """Any number of processes may be this site's witness at a time; a fork is seen by the one it was shown to."""

    def __init__(self, signer: Signer, log_key: Verifier, home: Path, clock: Clock) -> None:
        """`signer`: the key the site signs its notes with. Evidence of an earlier fork is found in `home`."""
        self._witness = Witness(Cosigner(signer), [log_key], FileMemory(home / "witness"))
        self._origin, self._home, self._clock = log_key.name, home, clock
        self._said = ""
        self.fork = next((_forked(path) for path in self._evidence()), "")
        """Why this site trains no more: the journal forked. Empty when it did not."""

    @property
    def size(self) -> int:
        """Records of the checkpoint cosigned last; 0 before the first. Raises StoreError."""
        return self._witness.size(self._origin)

    def cosign(self, old: int, proof: Sequence[bytes], checkpoint: bytes) -> tuple[int, str] | None:
        """Size and signature line for a checkpoint that extends the one of size `old`, cosigned last.

        None, with the reason in the log, when it must not be cosigned, or `old` is not what was cosigned last. Raises
        StoreError when the checkpoint cannot be remembered: then it was not cosigned.
        """
        answer = self._witness.add(old, proof, checkpoint, self._clock.now_ms() // 1000)
        if isinstance(answer, str):
            self._said = ""
            return Checkpoint.read(parse(checkpoint)).size, answer
        if answer.status == 422:
            self._keep_evidence(answer, checkpoint)
        elif answer.message != self._said:
            log.warning("not cosigned: %s", answer.message)
        self._said = answer.message
        return None

    def _keep_evidence(self, refusal: WitnessRefusal, checkpoint: bytes) -> None:
        size = Checkpoint.read(parse(checkpoint)).size
        path = self._home / f"fork-{size}.note"
        kept = self._evidence()
        if path not in kept and len(kept) < EVIDENCE_MAX:
            write_file(path, refusal.cosigned + b"\n" + checkpoint)
        self.fork = _forked(path if len(kept) < EVIDENCE_MAX else kept[0])
        if refusal.message != self._said:
            log.error("%s (%s)", self.fork, refusal.message)

    def _evidence(self) -> list[Path]:
        return sorted(self._home.glob("fork-*.note"))


def _forked(path: Path) -> str:
    return (
        f"the journal has shown this site two histories: {path} holds both checkpoints, signed by its key; this "
        "site's operator shows them to the other members, and removes the file once they agreed on one"
    )
