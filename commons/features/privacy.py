"""Features that change whose updates can be seen by whom, and which of them are believed (`commons.privacy`).

Each mode is a feature of its own, so that a proposal names what it asks for, and a site can list the modes it takes
part in. The parameters are the mode's own section: what a vote does not name has its default.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from commons.features.feature import Feature, Patch, replaced
from commons.privacy.terms import DP, Mode, Robust, SecAgg
from commons.section import WHOLE, Section


class NoTerms(Section):
    """The mode has no parameters."""


class NormGate(Section):
    times: Annotated[float, Field(ge=2, le=1e12)]


def _mode(mode: Mode, terms: Section | None = None) -> Patch:
    chosen = replaced("/privacy/mode", mode)
    if terms is None:
        return [chosen]
    return [chosen, replaced(f"/privacy/{mode}", terms.model_dump(mode="json", context=WHOLE))]


PRIVACY = (
    Feature(
        "privacy-none",
        "The coordinator sees every update, and the model is their plain mean",
        NoTerms,
        ("/privacy/mode",),
        lambda _, __: _mode("none"),
    ),
    Feature(
        "privacy-robust",
        "Combine by a rule that some wrong or malicious updates cannot move far",
        Robust,
        ("/privacy/mode", "/privacy/robust"),
        lambda _, terms: _mode("robust", terms),
        needs="as many updates in the quorum as the rule takes, and no late updates",
    ),
    Feature(
        "privacy-secagg",
        "The coordinator sees the sum of the updates of trunk and router, and no single one",
        SecAgg,
        ("/privacy/mode", "/privacy/secagg"),
        lambda _, terms: _mode("secagg", terms),
        needs="fp32 for shared slices, a quorum of its minimum, and no late updates",
    ),
    Feature(
        "privacy-dp",
        "Each site clips its update and adds noise before it leaves; what that spends of its privacy has a limit",
        DP,
        ("/privacy/mode", "/privacy/dp"),
        lambda _, terms: _mode("dp", terms),
        needs="codecs other than top_k, and more epsilon than one round spends",
    ),
    Feature(
        "norm-gate",
        "Reject an update whose norm is more than this many times the median of its round",
        NormGate,
        ("/learning/norm_gate",),
        lambda _, p: [replaced("/learning/norm_gate", p.times)],
    ),
)
