"""A statement in FOCUS 1.2, the FinOps Open Cost and Usage Specification: one CSV that cost tools read.

Owns which column says what. The rows are what the partner was charged and what it got back: the billed costs add up to
charged - refunded of the statement, to the micro; a pledge that was paid is a purchase. Grants, conversions and expiry are budget, not cost; they are not here.
A charge is split over the price of work and the price of time in proportion to their exact prices.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime, timezone

from commons.accounting import Rate
from commons.pricing import pico_per_gflop
from governance.statements.postings import decimal
from governance.statements.statement import Granted, Refund, Statement, Usage

VERSION = "1.2"
COLUMNS = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceDetails",
    "SkuPriceId",
    "x_Accepted",
    "x_EnergyJoules",
    "x_Experts",
    "x_JournalRecord",
    "x_Owner",
    "x_Round",
    "x_Run",
    "x_Tokens",
    "x_Transfer",
)
OPERATIONS = "1000000000 Operations"
DEVICE_TIME = "Device-Seconds"
ROUNDS = "Rounds"

Row = dict[str, str]
"""Column -> what stands there; a column that is not in it has no value."""


def focus_csv(statement: Statement) -> str:
    """The whole file, lines ended by CR LF (RFC 4180). The same statement gives the same text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(_rows(statement))
    return out.getvalue()


def _rows(statement: Statement) -> Iterator[Row]:
    found: list[tuple[int, list[Row]]] = [(u.record, _usage(statement, u)) for u in statement.usages]
    found += [(r.record, [_refund(statement, r)]) for r in statement.refunds]
    found += [(p.record, [_pledge(statement, p)]) for p in statement.pledged]
    for _, rows in sorted(found, key=lambda numbered: numbered[0]):
        yield from rows


def _usage(statement: Statement, usage: Usage) -> list[Row]:
    """One row for each price the device has: of work, of time."""
    about = {
        **_about(statement, usage),
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _time(usage.held_ms),
        "ChargePeriodEnd": _time(max(usage.at_ms, usage.held_ms) + 999, least=usage.held_ms),
        "PricingCategory": "Standard",
        "x_Accepted": str(usage.accepted).lower(),
    }
    if not usage.device:
        description = f"Round {usage.round} of {usage.run} on {usage.site}"
        return [about | _unmeasured(usage) | {"ChargeDescription": description}]
    rate, (work, time) = statement.rate(usage), statement.exact_pico(usage)
    of_work = usage.charged_micro * work // (work + time) if time else usage.charged_micro
    has_work_price = rate.micro_per_gflop or rate.micro_per_pflop or not rate.micro_per_device_second
    rows = []
    if has_work_price:
        rows.append(about | _work(rate, usage, work) | _cost(of_work))
    if rate.micro_per_device_second:
        rows.append(about | _time_used(rate, usage, time) | _cost(usage.charged_micro - of_work * bool(rows)))
    for row in rows:
        what = f"{usage.device} at {usage.precision}" + ", rejected" * (not usage.accepted)
        row["ChargeDescription"] = f"Round {usage.round} of {usage.run} on {usage.site}: {what}"
        row["SkuPriceId"] = f"{usage.rate_card}/{row['SkuId']}"
        row["SkuPriceDetails"] = _json(x_Device=rate.device, x_Precision=rate.precision)
    rows[0]["x_Tokens"] = str(usage.tokens)
    rows[0]["x_EnergyJoules"] = "" if usage.energy_j is None else str(usage.energy_j)
    return rows


def _work(rate: Rate, usage: Usage, exact_pico: int) -> Row:
    unit_pico = pico_per_gflop(rate)
    return {
        "SkuId": f"{rate.device}/{rate.precision}/work",
        "SkuMeter": "Floating-point operations",
        "ListUnitPrice": _number(unit_pico, 12),
        "ListCost": _number(exact_pico, 12),
        **_quantity(str(usage.gflop), OPERATIONS),
    }


def _time_used(rate: Rate, usage: Usage, exact_pico: int) -> Row:
    return {
        "SkuId": f"{rate.device}/{rate.precision}/time",
        "SkuMeter": "Device time",
        "ListUnitPrice": _number(rate.micro_per_device_second, 6),
        "ListCost": _number(exact_pico, 12),
        **_quantity(_number(usage.device_ms, 3), DEVICE_TIME),
    }


def _unmeasured(usage: Usage) -> Row:
    """From a journal in which measures did not stand on the charge yet: one round, at what it cost."""
    price = _number(usage.charged_micro, 6)
    return {
        "SkuId": "round",
        "SkuMeter": "Rounds",
        "SkuPriceId": f"{usage.id}/round",
        "ListUnitPrice": price,
        "ListCost": price,
        **_quantity("1", ROUNDS),
        **_cost(usage.charged_micro),
    }


def _refund(statement: Statement, refund: Refund) -> Row:
    """Money without a quantity: nothing is metered again."""
    given = _number(-refund.amount_micro, 6)
    return {
        **_about(statement, refund),
        **_cost(-refund.amount_micro),
        "ListCost": given,
        "ChargeCategory": "Adjustment",
        "ChargeClass": "Correction" if refund.correction else "",
        "ChargeDescription": f"{refund.reason.replace('_', ' ').capitalize()}: {refund.settle}",
        "ChargeFrequency": "One-Time",
        "ChargePeriodStart": _time(refund.charged_ms),
        "ChargePeriodEnd": _time(refund.charged_ms, least=refund.charged_ms),
    }


def _pledge(statement: Statement, paid: Granted) -> Row:
    """Money that another member was given with a proposal that became law: no site's, and nothing is metered."""
    return {
        **_billed(statement, paid),
        **_cost(paid.amount),
        "ListCost": _number(paid.amount, 6),
        "ChargeCategory": "Purchase",
        "ChargeDescription": f"{paid.about.capitalize()}: {paid.id}",
        "ChargeFrequency": "One-Time",
        "ChargePeriodStart": _time(paid.at_ms),
        "ChargePeriodEnd": _time(paid.at_ms, least=paid.at_ms),
        "PublisherName": statement.note.consortium,
    }


def _about(statement: Statement, of: Usage | Refund) -> Row:
    note = statement.note
    return {
        **_billed(statement, of),
        "PublisherName": of.owner,
        "ResourceId": f"{note.consortium}/{of.owner}/{of.site}",
        "ResourceName": of.site,
        "ResourceType": "Site",
        "x_Experts": " ".join(statement.experts(of.site)),
        "x_Owner": of.owner,
        "x_Round": str(of.round),
        "x_Run": of.run,
    }


def _billed(statement: Statement, of: Usage | Refund | Granted) -> Row:
    note = statement.note
    return {
        "BillingAccountId": f"{note.consortium}/{note.partner}",
        "BillingAccountName": note.partner,
        "BillingCurrency": note.currency,
        "BillingPeriodStart": _time(note.begin_ms),
        "BillingPeriodEnd": _time(note.end_ms),
        "InvoiceId": note.digest if note.closed == "yes" else "",
        "InvoiceIssuerName": note.consortium,
        "ProviderName": note.consortium,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Expert training",
        "ServiceSubcategory": "Machine Learning",
        "x_JournalRecord": str(of.record),
        "x_Transfer": of.id,
    }


def _cost(micro: int) -> Row:
    """There are no commitments and no negotiated prices: contracted, effective and billed are one."""
    amount = _number(micro, 6)
    return {"BilledCost": amount, "EffectiveCost": amount, "ContractedCost": amount}


def _quantity(amount: str, unit: str) -> Row:
    return {
        "ConsumedQuantity": amount,
        "ConsumedUnit": unit,
        "PricingQuantity": amount,
        "PricingUnit": unit,
    }


def _number(scaled: int, places: int) -> str:
    """Without an exponent and without zeros that say nothing: 1500000, 6 -> 1.5."""
    return decimal(scaled, places).rstrip("0").rstrip(".")


def _time(at_ms: int, least: int | None = None) -> str:
    """ISO 8601 to the second; with `least`, an end that is after the second of it."""
    second = at_ms // 1000
    if least is not None:
        second = max(second, least // 1000 + 1)
    return datetime.fromtimestamp(second, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(**values: str) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
