"""A statement as FOCUS 1.2: the specification's columns, its formats, and costs that add up to the micro."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from commons.notes import digest
from governance.ledger import Charge, decide_settle
from governance.statements.focus import COLUMNS, VERSION, focus_csv
from governance.statements.reading import read_statement
from governance.statements.statement import Statement
from tests.support.chamber import MEMBERS
from tests.support.months import Months, law, told

SPECIFICATION = json.loads(
    (Path(__file__).parents[1] / "support" / "vectors" / "focus-columns.json").read_text()
)
SPECIFIED = SPECIFICATION["columns"]
ALLOWED = {
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {"Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {"Machine Learning"},
}
"""Of the specification; of the services those that are ours."""
PERIODS = ("2026-10", "2026-11", "2027-01", "2027-q1", "2027-q2")
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?")
TIME = "%Y-%m-%dT%H:%M:%SZ"


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Months]:
    books = told(tmp_path_factory.mktemp("books"))
    yield books
    books.journal.close()


@pytest.fixture(scope="module")
def every(books: Months) -> list[tuple[Statement, list[dict[str, str]]]]:
    """Each partner's statement of each period, and its rows."""
    found = [statement(books, partner, period) for partner in MEMBERS for period in PERIODS]
    return [(one, rows(one)) for one in found]


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Months]:
    books = Months(tmp_path)
    yield books
    books.journal.close()


def statement(books: Months, partner: str, period: str) -> Statement:
    found = books.bundle(partner, period)
    return read_statement(found.note, found.lines, found.earlier)


def rows(of: Statement) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(focus_csv(of))))


def total(found: list[dict[str, str]], column: str = "BilledCost") -> Decimal:
    return sum((Decimal(row[column]) for row in found), Decimal(0))


def test_the_columns_are_the_specifications_and_no_mandatory_one_is_missing() -> None:
    assert SPECIFICATION["version"] == VERSION
    own = [column for column in COLUMNS if column.startswith("x_")]
    assert set(COLUMNS) - set(own) <= set(SPECIFIED)
    mandatory = {name for name, column in SPECIFIED.items() if column["level"] == "Mandatory"}
    assert len(mandatory) == 21 and mandatory <= set(COLUMNS)
    assert len(set(COLUMNS)) == len(COLUMNS)
    assert list(COLUMNS) == [*sorted(set(COLUMNS) - set(own)), *sorted(own)], "ours stand last"


def test_every_value_has_its_columns_form(every: Any) -> None:
    seen = set()
    for _, found in every:
        for row in found:
            for name, column in SPECIFIED.items():
                value = row.get(name, "")
                if name not in COLUMNS:
                    continue
                assert value or column["nulls"], f"{name} may not be empty"
                if value and column["type"] == "Decimal":
                    assert NUMBER.fullmatch(value), (name, value)
                if value and column["type"] == "Date/Time":
                    assert datetime.strptime(value, TIME)
                if value and column["type"] == "JSON":
                    assert all(not isinstance(v, dict | list) for v in json.loads(value).values())
                if value and (allowed := ALLOWED.get(name)):
                    assert value in allowed, (name, value)
                seen.add(name) if value else None
    assert seen == {c for c in COLUMNS if not c.startswith("x_")}, "each column is used somewhere"


def test_billed_costs_add_up_to_the_statement(every: Any) -> None:
    for of, found in every:
        note = of.note
        assert total(found) == Decimal(note.charged_micro - note.refunded_micro).scaleb(-6)
        usage = [row for row in found if row["ChargeCategory"] == "Usage"]
        assert total(usage) == Decimal(note.charged_micro).scaleb(-6)
        assert total(found, "EffectiveCost") == total(found)


def test_unit_price_times_quantity_is_the_list_cost_to_the_last_digit(every: Any) -> None:
    priced = [row for _, found in every for row in found if row["ListUnitPrice"]]
    assert len({row["SkuId"] for row in priced}) == 2, "work and time"
    for row in priced:
        assert Decimal(row["ListUnitPrice"]) * Decimal(row["PricingQuantity"]) == Decimal(row["ListCost"])
        assert (row["PricingQuantity"], row["PricingUnit"]) == (row["ConsumedQuantity"], row["ConsumedUnit"])


def test_what_the_specification_asks_of_usage_and_of_all_else(every: Any) -> None:
    for row in (row for _, found in every for row in found):
        measured = ("ConsumedQuantity", "ConsumedUnit", "PricingQuantity", "PricingUnit", "PricingCategory")
        sku = ("SkuId", "SkuPriceId", "ListUnitPrice", "SkuMeter")
        if row["ChargeCategory"] == "Usage":
            assert all(row[name] for name in (*measured, *sku))
            assert (row["ChargeClass"], row["ChargeFrequency"]) == ("", "Usage-Based")
        else:
            assert not any(row[name] for name in (*measured, *sku))
            costs = {row[name] for name in ("BilledCost", "EffectiveCost", "ContractedCost", "ListCost")}
            assert len(costs) == 1 and Decimal(row["BilledCost"]) < 0
        begin, end = (datetime.strptime(row[f"ChargePeriod{at}"], TIME) for at in ("Start", "End"))
        assert begin < end
        assert row["ContractedCost"] == row["BilledCost"]


def test_a_charge_is_split_over_work_and_time_in_proportion(books: Months) -> None:
    work, time = (row for row in rows(statement(books, "acme", "2026-10")) if row["x_Round"] == "1"
                  and row["ChargeCategory"] == "Usage")  # fmt: skip
    assert (work["SkuId"], time["SkuId"]) == ("cpu/any/work", "cpu/any/time")
    assert (work["PricingQuantity"], work["PricingUnit"]) == ("100", "1000000000 Operations")
    assert (work["ListUnitPrice"], work["ListCost"]) == ("0.000003000011", "0.0003000011")
    assert (time["PricingQuantity"], time["PricingUnit"]) == ("1.5", "Device-Seconds")
    assert (time["ListUnitPrice"], time["ListCost"]) == ("0.000007", "0.0000105")
    assert (work["BilledCost"], time["BilledCost"]) == ("0.0003", "0.000011")
    assert work["SkuPriceId"] == f"{books.note('acme', '2026-10').rate_card}/cpu/any/work"
    assert (work["x_Tokens"], work["x_EnergyJoules"], time["x_Tokens"]) == ("640", "12", "")
    assert work["x_JournalRecord"] == time["x_JournalRecord"] and work["x_Experts"] == "law-0"


def test_a_refund_of_an_earlier_periods_charge_is_a_correction_at_that_charges_time(books: Months) -> None:
    october = [row for row in rows(statement(books, "acme", "2026-10")) if row["BilledCost"].startswith("-")]
    november = [row for row in rows(statement(books, "acme", "2026-11")) if row["BilledCost"].startswith("-")]
    assert [(r["BilledCost"], r["ChargeClass"]) for r in october] == [("-0.00004", "")]
    assert [(r["BilledCost"], r["ChargeClass"]) for r in november] == [("-0.00003", "Correction")]
    (late,) = november
    assert (late["ChargePeriodStart"], late["ChargePeriodEnd"]) == (
        "2026-10-06T00:00:00Z",
        "2026-10-06T00:00:01Z",
    )
    assert (late["BillingPeriodStart"], late["BillingPeriodEnd"]) == (
        "2026-11-01T00:00:00Z",
        "2026-12-01T00:00:00Z",
    )


def test_rows_say_who_is_billed_by_whom_for_whose_machines(books: Months) -> None:
    of = statement(books, "coop", "2026-10")
    row = rows(of)[0]
    assert (row["BillingAccountId"], row["InvoiceIssuerName"], row["ProviderName"]) == (
        "demo/coop",
        "demo",
        "demo",
    )
    assert (row["PublisherName"], row["ResourceId"]) == ("beta", "demo/beta/turin")
    assert row["InvoiceId"] == of.note.digest
    assert rows(statement(books, "coop", "2027-q2")) == [], "nothing was charged yet"
    assert rows(statement(books, "acme", "2027-q2"))[0]["InvoiceId"] == "", "an open period has no invoice"


def test_a_rejected_update_shows_its_price_and_its_share(books: Months) -> None:
    rejected = [r for r in rows(statement(books, "coop", "2026-10")) if r["x_Accepted"] == "false"]
    assert total(rejected) == Decimal("0.00008")
    assert total(rejected, "ListCost") == Decimal("0.00016050055")
    assert all("rejected" in r["ChargeDescription"] for r in rejected)


@pytest.mark.parametrize(
    ("prices", "skus"),
    [
        ({"micro_per_gflop": 3}, ["work"]),
        ({"micro_per_gflop": 0, "micro_per_pflop": 9}, ["work"]),
        ({"micro_per_gflop": 0, "micro_per_device_second": 7}, ["time"]),
        ({"micro_per_gflop": 0}, ["work"]),
    ],
)
def test_a_price_that_a_device_does_not_have_has_no_row(
    tmp_path: Path, prices: dict[str, int], skus: list[str]
) -> None:
    books = Months(
        tmp_path,
        law(rate_card={"currency": "EUR", "rates": ({"device": "cpu", "precision": "any", **prices},)}),
    )
    charged = books.work(1)
    found = rows(statement(books, "acme", "current"))
    books.journal.close()
    assert [row["SkuId"] for row in found] == [f"cpu/any/{sku}" for sku in skus]
    assert total(found) == Decimal(charged).scaleb(-6)


def test_a_charge_from_before_measures_stood_on_it_is_one_round(fresh: Months) -> None:
    hold = fresh.hold(1)
    charge = Charge(amount_micro=77, usage=digest(b"usage"))
    fresh.take(lambda now: decide_settle(fresh.ledger, hold, charge, now))
    (row,) = rows(statement(fresh, "acme", "current"))
    assert (row["BilledCost"], row["PricingQuantity"], row["PricingUnit"]) == ("0.000077", "1", "Rounds")
    assert row["ListUnitPrice"] == "0.000077"
