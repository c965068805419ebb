"""The charter's `[privacy]`: which mode a run has, on which terms, and which charters cannot keep them.

A mode is one of four and never two: a robust rule must see each site's update, secure aggregation shows nobody but
the sum, noise makes outliers of honest updates. What no charter can keep is refused here, before anybody votes on it;
`docs/privacy.md` says what each mode protects from whom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from commons.privacy.accounting import epsilon_after
from commons.section import Section

Mode = Literal["none", "robust", "secagg", "dp"]
Rule = Literal["norm_clip", "trimmed_mean", "median", "krum", "multi_krum", "centred_clip"]

COHORT_MIN = 3
"""Of two, each knows the other's update from the sum."""
WORD_BITS = 32
"""Masked sums are taken modulo 2^32."""


class Robust(Section):
    """How shared slices are combined when some sites may send anything."""

    rule: Rule = "norm_clip"
    faulty: Annotated[int, Field(ge=1, le=511)] = 1
    """trimmed_mean, krum, multi_krum: how many of a round's updates may be wrong."""
    kept: Annotated[int, Field(ge=0, le=1024)] = 0
    """multi_krum: how many of the updates are averaged. 0: all but the faulty."""
    clip_norm: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """norm_clip: longest L2 norm over the shared slices. 0: the median of the round's norms."""
    radius: Annotated[float, Field(ge=0, le=1e9)] = 0.0
    """centred_clip: how far from the centre an update counts in full. 0: the median of the distances."""
    iterations: Annotated[int, Field(ge=1, le=100)] = 5
    """centred_clip: how often the centre is moved, from the base on."""

    @property
    def needs(self) -> int:
        """Least number of updates at which the rule means anything."""
        match self.rule:
            case "norm_clip":
                return 1
            case "median" | "centred_clip":
                return 3
            case "trimmed_mean":
                return 2 * self.faulty + 1
            case "krum" | "multi_krum":
                return 2 * self.faulty + 3


class SecAgg(Section):
    """How updates of shared slices are hidden in their sum. Every site counts the same in it."""

    clip: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Values beyond this magnitude are cut to it."""
    fraction_bits: Annotated[int, Field(ge=8, le=30)] = 24
    """A value is sent as a whole number of 2^-fraction_bits of `clip`."""
    minimum: Annotated[int, Field(ge=COHORT_MIN, le=1024)] = COHORT_MIN
    """Updates a sum is taken of, at the least."""
    threshold: Annotated[int, Field(ge=0, le=1024)] = 0
    """Sites that must help to open a sum. 0: the least number above two thirds of those that began the round."""

    def needed(self, began: int) -> int:
        """Sites that must help to open the sum of a round that `began` sites began."""
        return max(self.threshold, 2 * began // 3 + 1)


class DP(Section):
    """Site-level differential privacy: each site clips its update and adds Gaussian noise before it leaves."""

    clip_norm: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """L2 norm over all noised slices that an update is cut to."""
    noise_multiplier: Annotated[float, Field(ge=0.01, le=1e4)] = 1.0
    """Standard deviation of each value's noise, in units of `clip_norm`."""
    delta: Annotated[float, Field(ge=1e-15, le=1e-2)] = 1e-6
    epsilon_max: Annotated[float, Field(gt=0, le=1e4)] = 8.0
    """What one site may spend in all, over all its rounds; a round beyond it does without the site."""
    slices: Literal["shared", "all"] = "shared"
    """`shared`: trunk and router. `all`: the site's own experts too, else they leave it as trained."""


class Privacy(Section):
    LATER: ClassVar[frozenset[str]] = frozenset({"robust", "secagg", "dp"})

    mode: Mode = "none"
    robust: Robust = Robust()
    secagg: SecAgg = SecAgg()
    dp: DP = DP()

    @property
    def noises_experts(self) -> bool:
        """Whether a site's own experts leave it under noise, as trunk and router do."""
        return self.mode == "dp" and self.dp.slices == "all"


def conflicts(
    privacy: Privacy, *, sites: int, quorum: int, expert_codec: str, shared_codecs: Mapping[str, str]
) -> list[str]:
    """Why a charter with these sites, quorum and uplink codecs cannot keep its privacy mode; each in one sentence.

    `shared_codecs`: by the charter's field, those of slices that all sites train.
    """
    match privacy.mode:
        case "none":
            return []
        case "robust":
            return list(_robust(privacy.robust, quorum, shared_codecs))
        case "secagg":
            return list(_secagg(privacy.secagg, sites, quorum, shared_codecs))
        case "dp":
            noised = {**shared_codecs, **({"expert": expert_codec} if privacy.dp.slices == "all" else {})}
            return list(_dp(privacy.dp, noised))


def _robust(robust: Robust, quorum: int, codecs: Mapping[str, str]) -> Iterator[str]:
    if quorum < robust.needs:
        counts = robust.rule in ("trimmed_mean", "krum", "multi_krum")
        of = f" of which {robust.faulty} may be wrong" if counts else ""
        yield (
            f"privacy.robust.rule is {robust.rule!r}, which needs {robust.needs} updates{of}, but a round may close "
            f"with rounds.quorum = {quorum}"
        )
    if robust.rule == "multi_krum" and robust.kept > quorum - robust.faulty:
        yield (
            f"privacy.robust.kept is {robust.kept} but a round may close with {quorum} updates, "
            f"{robust.faulty} of them wrong"
        )
    if robust.rule in ("median", "trimmed_mean"):
        for field, codec in codecs.items():
            if codec == "top_k":
                yield (
                    f"privacy.robust.rule is {robust.rule!r} but learning.codecs.{field} is 'top_k': each site sends "
                    "other positions, and the middle of mostly zeros is zero"
                )


def _secagg(secagg: SecAgg, sites: int, quorum: int, codecs: Mapping[str, str]) -> Iterator[str]:
    if sites < COHORT_MIN:
        yield f"privacy.mode is 'secagg' but there are {sites} sites: of fewer than {COHORT_MIN} each sees through the sum"
    elif quorum < secagg.minimum:
        yield (
            f"privacy.secagg.minimum is {secagg.minimum} but a round may close with rounds.quorum = {quorum}: "
            "the quorum must be at least the minimum"
        )
    if secagg.threshold > sites:
        yield f"privacy.secagg.threshold is {secagg.threshold} but there are {sites} sites"
    elif secagg.threshold and secagg.threshold <= 2 * sites // 3:
        yield (
            f"privacy.secagg.threshold is {secagg.threshold}, which is not above two thirds of {sites} sites: "
            "two halves of them could be made to open different sums"
        )
    if sites << secagg.fraction_bits >= 1 << (WORD_BITS - 1):
        yield (
            f"privacy.secagg.fraction_bits is {secagg.fraction_bits}, too many for the sum of {sites} sites in "
            f"{WORD_BITS} bits"
        )
    for field, codec in codecs.items():
        if codec != "fp32":
            yield (
                f"privacy.mode is 'secagg' but learning.codecs.{field} is {codec!r}: masked values are whole numbers "
                "of their own encoding, so shared slices take 'fp32' here"
            )


def _dp(dp: DP, codecs: Mapping[str, str]) -> Iterator[str]:
    if (first := epsilon_after([dp.noise_multiplier], dp.delta)) > dp.epsilon_max:
        yield (
            f"privacy.dp.epsilon_max is {dp.epsilon_max:g} but one round already spends {first:.3g}: "
            "no site could take part"
        )
    for field, codec in codecs.items():
        if codec == "top_k":
            yield (
                f"privacy.mode is 'dp' but learning.codecs.{field} is 'top_k': it would send what has the most noise, "
                "and keep the rest of the noise for later rounds"
            )
