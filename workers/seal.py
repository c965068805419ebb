"""From a trained round to an update: deltas, error feedback, codecs, signed notes.

Pure but for the signatures' key. Everything sent is a delta against the assignment's base. For shared slices what
quantisation dropped is added to the next round's delta (error feedback, EF-SGD, arXiv 1901.09847); own experts need
none, since their next delta is taken against the base the coordinator built from this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commons.charter import Codecs
from commons.codec import decode, encode
from commons.experts.map import ExpertMap
from commons.names import SiteId
from commons.notes import Signer, digest
from commons.updates import UpdateManifest, lay_out
from commons.work import AssignmentNote, UpdateNote, UsageNote
from workers.meter import Usage

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Trained:
    """What one round of training gave; arrays under their on-disk names."""

    trunk_delta: Mapping[str, Array]
    experts: Mapping[str, Array]
    """Own experts' weights after the round."""
    steps: int
    tokens: int
    loss: float
    held_out_loss: float | None
    gflop: int
    usage: Usage
    model_bytes: int = 0
    """Weights, gradients and moments held while training."""


@dataclass(frozen=True)
class Packed:
    manifest: UpdateManifest
    payload: bytes
    residual: dict[str, Array]
    """To be added to the next round's delta; only slices where the codec dropped something."""


def pack(
    trained: Trained,
    *,
    base: Mapping[str, Array],
    residual: Mapping[str, Array],
    expert_map: ExpertMap,
    site: SiteId,
    codecs: Codecs,
) -> Packed:
    """Encode every slice this site sends. The same arguments give the same bytes.

    Raises CodecError when a delta is not finite.
    """
    left: dict[str, Array] = {}
    encoded = []
    for part in expert_map.uplink(site):
        codec = codecs.of(part.kind)
        if part.expert is not None:
            delta = trained.experts[part.name] - base[part.name]
            encoded.append((part.name, codec, part.shape, encode(codec, delta)))
            continue
        delta = trained.trunk_delta[part.name]
        if part.name in residual:
            delta = delta + residual[part.name]
        data = encode(codec, delta)
        if codec != "fp32":
            left[part.name] = delta - decode(codec, data, part.shape)
        encoded.append((part.name, codec, part.shape, data))
    manifest, payload = lay_out(encoded)
    return Packed(manifest, payload, left)


def sign(
    order: AssignmentNote, trained: Trained, packed: Packed, *, device: str, signer: Signer
) -> tuple[bytes, bytes]:
    """The update note and the usage note of a packed round. `device`: its kind, as the rate card names it."""
    payload, usage = digest(packed.payload), trained.usage
    update = UpdateNote(
        consortium=order.consortium,
        run=order.run,
        round=order.round,
        site=order.site,
        base=order.base,
        manifest=digest(packed.manifest.to_bytes()),
        payload=payload,
        payload_bytes=len(packed.payload),
        steps=trained.steps,
        tokens=trained.tokens,
        loss=trained.loss,
        held_out_loss=trained.held_out_loss,
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
