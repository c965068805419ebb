"""From a trained round to an update: deltas, error feedback, codecs, signed notes.

Works frame by frame from arrays to files: sealing takes no memory beyond one slice. Everything sent is a delta against
the assignment's base. For slices that all sites send what quantisation dropped is added to the next round's delta (error
feedback, EF-SGD, arXiv 1901.09847); own experts that stay as their owner has them need none, since their next delta is taken
against the base the coordinator built from this one. Under noise a delta is clipped and
noised before all that (`workers.noise`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from commons.codec import FRAME, encode_frame, encode_with_feedback
from commons.disk import begin_writeback
from commons.exchange import Exchange
from commons.experts.map import Slice
from commons.learning import Codec
from commons.masking import FixedPoint, Masker, to_bytes
from commons.names import SiteId
from commons.notes import Signer, digest
from commons.updates import Encoding, Part, UpdateManifest
from commons.work import AssignmentNote, UpdateNote, UsageNote, routed_text
from workers.meter import Usage
from workers.noise import Noise, Noising
from workers.residual import Residual, ResidualWriter

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """What one round of training gave; arrays under their on-disk names."""

    trunk_delta: Mapping[str, Array]
    experts: Mapping[str, Array]
    """Weights after the round of the experts that the site trains."""
    steps: int
    tokens: int
    loss: float
    held_out_loss: float | None
    gflop: int
    usage: Usage
    routed: tuple[tuple[int, ...], ...] = ()
    """Tokens given to each expert, by index, in each layer that has a router."""
    model_bytes: int = 0
    """Weights, gradients and moments held while training."""


PAYLOAD = "payload.bin"


def pack(
    trained: Trained,
    *,
    base: Mapping[str, Array],
    residual: Residual,
    exchange: Exchange,
    site: SiteId,
    folder: Path,
    masking: Masking | None = None,
    noising: Noising | None = None,
) -> UpdateManifest:
    """Encode every slice this site sends in this round into `folder`: the payload, and what the codecs dropped for the
    next round.

    `masking`: shared slices are sent masked. `noising`: what it covers is clipped and noised first, and what an earlier round
    left over without noise is forgotten, as it would tell what the noise hides. A payload that is there already is written over. The same arguments give the same bytes. Raises CodecError when a delta is not finite.
    """
    parts: list[Part] = []
    sends, codecs = exchange.uplink(site), exchange.codecs
    left = ResidualWriter(folder, expert_map=exchange.expert_map, noised=noising is not None)
    path = folder / PAYLOAD
    noise = None
    if noising is not None:
        covered = (part for part in sends if noising.covers(part))
        noise = noising.begin((part.name, _delta(part, trained, base)) for part in covered)
        residual = residual if residual.noised else Residual(None, exchange.expert_map)
    with path.open("r+b" if path.exists() else "wb") as payload:
        try:
            for part in sends:
                at = parts[-1].offset + parts[-1].bytes if parts else 0
                delta = _delta(part, trained, base)
                how = masking if masking and exchange.by_all(part) else codecs.of(part.kind)
                apart = exchange.owners_keep and not exchange.by_all(part)
                feedback = None if apart else _Feedback(residual, left)
                parts.append(_encode(part, delta, how, at, feedback, payload, noise))
            names = {part.name for part in sends}
            for part in (part for part in exchange.expert_map.slices if part.name not in names):
                left.carry(residual, part)
        finally:
            left.close()
        payload.truncate()
        routed = trained.routed if exchange.counts else ()
        return UpdateManifest(parts=tuple(parts), payload_bytes=payload.tell(), routed=routed)


def _delta(part: Slice, trained: Trained, base: Mapping[str, Array]) -> Array:
    if part.expert is None:
        return np.ascontiguousarray(trained.trunk_delta[part.name], np.float32).reshape(-1)
    own = np.ascontiguousarray(trained.experts[part.name], np.float32)
    return np.subtract(own, base[part.name]).reshape(-1)


def _encode(
    part: Slice,
    delta: Array,
    how: Codec | Masking,
    offset: int,
    feedback: _Feedback | None,
    payload: BinaryIO,
    noise: Noise | None,
) -> Part:
    digests: list[str] = []
    data: bytes | memoryview
    written = 0
    for number, first in enumerate(range(0, part.size, FRAME)):
        values = delta[first : first + FRAME]
        if noise is not None and noise.covers(part.name):
            values = noise.frame(part.name, number, values)
        earlier = feedback.before.read(part.name, first, values.size) if feedback else None
        if isinstance(how, Masking):
            assert feedback is not None, "what is masked goes into a sum"
            data, rest = how.frame(part.name, number, values, earlier)
            feedback.left.add(part.name, rest)
        elif feedback and (how != "fp32" or earlier is not None):
            data, rest = encode_with_feedback(how, values, earlier)
            if how != "fp32":
                feedback.left.add(part.name, rest)
        else:
            data = encode_frame(how, values)
        written += payload.write(data)
        digests.append(blake3(data).hexdigest())
    payload.flush()
    begin_writeback(payload.fileno(), offset, written)
    codec: Encoding = "masked" if isinstance(how, Masking) else how
    return Part(
        name=part.name, codec=codec, shape=part.shape, offset=offset, bytes=written, frames=tuple(digests)
    )


@dataclass(frozen=True)
class _Feedback:
    """What a codec drops of a slice, from round to round."""

    before: Residual
    left: ResidualWriter


@dataclass(frozen=True)
class Masking:
    """How this site hides its update of the shared slices in everybody's sum. For one thread."""

    fixed: FixedPoint
    masker: Masker
    slices: Mapping[str, int]
    """Shared slice -> its number, the same at all sites."""

    def frame(self, name: str, number: int, values: Array, earlier: Array | None) -> tuple[bytes, Array]:
        """One frame as it travels, and what the fixed point dropped of it. Raises CodecError when it is not finite."""
        rest = np.zeros(values.size, np.float32) if earlier is None else earlier
        words = np.empty(values.size, np.uint32)
        self.fixed.quantise(values, rest, words)
        self.masker.frame(words, self.slices[name], number)
        return to_bytes(words), rest


def sign(
    order: AssignmentNote,
    trained: Trained,
    manifest: UpdateManifest,
    *,
    device: str,
    signer: Signer,
    losses: bool = True,
    experts: Sequence[str] = (),
) -> tuple[bytes, bytes]:
    """The update note and the usage note of a packed round. `device`: its kind, as the rate card names it.

    `losses`: False withholds them, as they are of the text without noise. `experts`: in index order, where the note is to
    say which of them its tokens went to.
    """
    payload, usage = manifest.payload_digest, trained.usage
    update = UpdateNote(
        consortium=order.consortium,
        run=order.run,
        round=order.round,
        site=order.site,
        base=order.base,
        manifest=digest(manifest.to_bytes()),
        payload=payload,
        payload_bytes=manifest.payload_bytes,
        steps=trained.steps,
        tokens=trained.tokens,
        loss=trained.loss if losses else None,
        held_out_loss=trained.held_out_loss if losses else None,
        routed=routed_text({e: sum(layer[n] for layer in trained.routed) for n, e in enumerate(experts)}),
    )
    used = UsageNote(
        consortium=order.consortium,
        run=order.run,
        round=order.round,
        site=order.site,
        lease=order.lease,
        device=device,
        device_ids=",".join(usage.device_ids),
        precision=usage.precision,
        started_ms=usage.started_ms,
        ended_ms=usage.ended_ms,
        device_ms=usage.device_ms,
        steps=trained.steps,
        tokens=trained.tokens,
        gflop=trained.gflop,
        energy_j=usage.energy_j,
        update=payload,
    )
    return signer.sign(update.text), signer.sign(used.text)
