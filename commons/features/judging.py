"""Features that judge a round's state: the probe it is measured on, and what happens when it is worse (`commons.judging`).

The parameters are the charter's own sections; only what is named changes.
"""

from __future__ import annotations

from commons.charter import Charter
from commons.features.feature import Feature, Patch, replaced
from commons.judging import Contribution, Probe, Rollback
from commons.section import WHOLE, Section


def _named(section: str, terms: Section) -> Patch:
    values = terms.model_dump(mode="json", context=WHOLE)
    return [replaced(f"/{section}/{name}", values[name]) for name in values if name in terms.model_fields_set]


def _probe(_: Charter, terms: Probe) -> Patch:
    return _named("probe", terms)


def _rollback(_: Charter, terms: Rollback) -> Patch:
    return _named("rollback", terms)


def _contribution(_: Charter, terms: Contribution) -> Patch:
    return _named("contribution", terms)


JUDGING = (
    Feature(
        "probe",
        "Let the sites measure each round's state on a public text, named by its digest and size",
        Probe,
        ("/probe",),
        _probe,
    ),
    Feature(
        "rollback",
        "Do not take a state that is worse on the probe; leave out and quarantine the update that did it",
        Rollback,
        ("/rollback",),
        _rollback,
        needs="a probe",
    ),
    Feature(
        "contribution",
        "Measure from time to time what each update and each expert is worth on the probe",
        Contribution,
        ("/contribution",),
        _contribution,
        needs="a probe",
    ),
)
