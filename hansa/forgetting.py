"""What a model still shows of a text once the experts that trained on it are gone: loss, extraction, membership.

Compared with the model before, with the seed, which never saw the text, and with text of the same origin that no model
saw. A pure function of weights and texts; knows nothing of files, keys or who asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from commons.charter import Model
from commons.experts.map import ExpertMap
from hansa.reading import Array, Read, Reader
from workers.data import Corpus

ROWS = 256
"""Of each text, at most; enough that a rate of 1 % stands on two or three rows."""
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    expert_map: ExpertMap
    state: Mapping[str, Array]


@dataclass(frozen=True)
class Exposure:
    """Of one model, about the text of the site whose experts are retired."""

    extracted_trained: float
    """Share of rows it trained on whose second half the model continues to the byte, given the first half, greedily."""
    extracted_unseen: float
    """The same of rows of the same origin that nobody trained on: what is guessed and not remembered."""
    matched_trained: float
    """Mean length in bytes until such a continuation differs."""
    matched_unseen: float
    membership: float
    """AUC of telling trained from unseen rows by the loss: 0.5 is guessing."""
    membership_calibrated: float | None
    """The same by the loss less the seed's, a stronger attack (arXiv 2112.03570); None: this is the seed itself."""
    membership_error: float
    """Standard error of both (Hanley and McNeil 1982)."""


@dataclass(frozen=True)
class Measured:
    """Losses in nats per byte, on held-out text."""

    rows: int
    length: int
    losses: dict[str, dict[str, float]]
    """Domain -> seed | before | after -> loss."""
    exposures: dict[str, Exposure]
    """seed | before | after."""


def measure(
    model: Model,
    *,
    seed: Weights,
    before: Weights,
    after: Weights,
    own: tuple[str, Corpus],
    others: Mapping[str, Corpus],
    length: int,
    by_site: bool,
    seed_beside: bool = False,
    limit: int = ROWS,
) -> Measured:
    """`own`: domain and text of the site whose experts are not in `after` any more; its held-out side is what nobody
    trained on. `by_site`: how experts are chosen (`hansa.reading`); the seed, which was trained as a whole, uses its
    router. `seed_beside`: before and after have the seed beside them (`hansa.beside`). Takes one pass of `limit` rows over each text and model. Raises CorpusError."""
    texts = {own[0]: own[1], **others}
    held_out = {d: t.held_out_rows(length=length, limit=limit) for d, t in texts.items()}
    trained = replace(own[1], held_out=own[1].train).held_out_rows(length=length, limit=limit)
    losses: dict[str, dict[str, float]] = {domain: {} for domain in texts}
    exposures: dict[str, Exposure] = {}
    reference: tuple[Read, Read] | None = None
    encoder, plain = own[1].encoder, model.model_copy(update={"reader": 0})
    start = Reader(plain, seed.expert_map, seed.state, by_site=False, encoder=encoder)
    beside = start if seed_beside else None
    for name, weights in (("seed", seed), ("before", before), ("after", after)):
        reader = start
        if name != "seed":
            reader = Reader(
                model, weights.expert_map, weights.state, by_site=by_site, beside=beside, encoder=encoder
            )
        read = {domain: reader.read(rows) for domain, rows in held_out.items()}
        for domain, found in read.items():
            losses[domain][name] = found.loss
        both = reader.read(trained), read[own[0]]
        exposures[name] = _exposure(*both, reference)
        reference = reference or both
    return Measured(len(trained), length, losses, exposures)


def _exposure(trained: Read, unseen: Read, reference: tuple[Read, Read] | None) -> Exposure:
    (one, whole), (other, unseen_whole) = _matched(trained), _matched(unseen)
    plain = auc(trained.losses, unseen.losses)
    calibrated = None
    if reference is not None:
        calibrated = auc(trained.losses - reference[0].losses, unseen.losses - reference[1].losses)
    return Exposure(
        extracted_trained=float(whole.mean()),
        extracted_unseen=float(unseen_whole.mean()),
        matched_trained=float(one.mean()),
        matched_unseen=float(other.mean()),
        membership=plain,
        membership_calibrated=calibrated,
        membership_error=auc_error(plain, len(one), len(other)),
    )


def _matched(read: Read) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Of each row's second half, in tokens: bytes that a greedy continuation of the first half gives before it goes wrong,
    and whether it gives them all."""
    half = read.likeliest.shape[1] // 2
    right = np.logical_and.accumulate(read.likeliest[:, -half:], axis=1)
    whole: NDArray[np.bool_] = right[:, -1]
    return (right * read.bytes[:, -half:]).sum(1), whole


def auc(trained: Scores, unseen: Scores) -> float:
    """Chance that a trained row has the lower score of two; ties count half."""
    ordered = np.sort(unseen)
    below = np.searchsorted(ordered, trained, side="left")
    upto = np.searchsorted(ordered, trained, side="right")
    return float(1 - (below + upto).mean() / (2 * len(unseen)))


def auc_error(value: float, trained: int, unseen: int) -> float:
    """Standard error of an AUC over so many rows (Hanley and McNeil 1982)."""
    one, other = value / (2 - value), 2 * value**2 / (1 + value)
    spread = value * (1 - value) + (trained - 1) * (one - value**2) + (unseen - 1) * (other - value**2)
    return float(np.sqrt(max(0.0, spread) / (trained * unseen)))
