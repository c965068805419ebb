"""Features that change who pays what: grants, prices, rules of the ledger, rulings, sponsors; and who witnesses it.

The parameters are the charter's own sections, so that a vote is bounded exactly as the charter is.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from commons.accounting import Accounting, Grant, Rate, Ruling
from commons.charter import Charter
from commons.cosignature import WITNESSES_MAX
from commons.errors import Code, Refusal
from commons.features.feature import Feature, Patch, appended, replaced
from commons.section import WHOLE, Name, Section


class Sponsor(Section):
    site: Name
    payer: Name
    """The member whose budget pays from now on."""


class WitnessQuorum(Section):
    quorum: Annotated[int, Field(ge=0, le=WITNESSES_MAX)]


def _whole(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json", context=WHOLE)


def _rate(charter: Charter, rate: Rate) -> Patch:
    """Replaces the rate of that device and precision; one that is not there yet is added."""
    for number, known in enumerate(charter.rate_card.rates):
        if (known.device, known.precision) == (rate.device, rate.precision):
            return [replaced(f"/rate_card/rates/{number}", _whole(rate))]
    return [appended("/rate_card/rates", _whole(rate))]


def _accounting(_: Charter, rules: Accounting) -> Patch:
    """Only the rules that were named."""
    values = _whole(rules)
    return [
        replaced(f"/accounting/{name}", values[name]) for name in values if name in rules.model_fields_set
    ]


def _sponsor(charter: Charter, wish: Sponsor) -> Patch | Refusal:
    for number, site in enumerate(charter.sites):
        if site.name == wish.site:
            return [replaced(f"/sites/{number}/payer", wish.payer)]
    known = ", ".join(site.name for site in charter.sites)
    message = f"parameters of sponsor: there is no site {wish.site!r}; there are {known}"
    return Refusal(Code.FEATURE_PARAMETERS_INVALID, message)


BOOKS = (
    Feature(
        "grant",
        "Grant a member further budget, or pledge device time that it converts",
        Grant,
        ("/grants",),
        lambda _, grant: [appended("/grants", _whole(grant))],
        type="budget.grant",
        switch=False,
        undone_by="nothing: what was granted is the member's; a grant may expire",
    ),
    Feature(
        "rates",
        "Set what a kind of device costs, from the next round on",
        Rate,
        ("/rate_card/rates",),
        _rate,
        type="ratecard.set",
        switch=False,
    ),
    Feature(
        "accounting",
        "Change rules of the ledger: rejected updates, contributions, periods, disputes, top-ups, who sees bills",
        Accounting,
        ("/accounting",),
        _accounting,
        switch=False,
    ),
    Feature(
        "ruling",
        "End a dispute that its parties did not settle: how much the payer gets back",
        Ruling,
        ("/rulings",),
        lambda _, ruling: [appended("/rulings", _whole(ruling))],
        switch=False,
        undone_by="nothing: a dispute ends once",
    ),
    Feature(
        "sponsor", "Let another member pay for a site", Sponsor, ("/sites/*/payer",), _sponsor, switch=False
    ),
    Feature(
        "witnesses",
        "How many witnesses must have seen the journal before a site trusts it",
        WitnessQuorum,
        ("/witnesses/quorum",),
        lambda _, wish: [replaced("/witnesses/quorum", wish.quorum)],
        switch=False,
    ),
)
