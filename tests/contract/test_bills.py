"""Whose bill a member is shown, over real gRPC: by the charter, and everywhere the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commons.errors import Code, Refused
from commons.identity import Seat
from commons.roll_views import RecordsView, RecordView
from commons.statement_proof import StatementView
from commons.views import BudgetsView
from hansa.chamber import Chamber
from tests.contract.test_budget import Bank
from tests.support.consortium import SITES, charter


@pytest.fixture
def bank_of(tmp_path: Path) -> Iterator[Any]:
    banks: list[Bank] = []

    def make(others_see: str) -> Bank:
        banks.append(Bank(tmp_path, charter(accounting={"others_see": others_see})))
        return banks[-1]

    yield make
    for bank in banks:
        bank.close()


def partners(chamber: Chamber) -> set[str]:
    return {b.partner for b in chamber.read(BudgetsView).budgets}


def test_a_charter_that_opens_nothing_keeps_a_bill_to_its_partner_and_the_operator(bank_of: Any) -> None:
    bank: Bank = bank_of("nothing")
    operator = Chamber(Seat.load(bank.home / "operator"))
    with Chamber.at(Path(bank.seat("alder"))) as alder, operator:
        assert partners(alder) == {"alder"} and partners(operator) == set(SITES)
        assert {b.partner for b in next(alder.watch(BudgetsView)).budgets} == {"alder"}
        found = {who: who.read(RecordsView, "kind=transfer").records for who in (alder, operator)}
        assert (len(found[alder]), len(found[operator])) == (1, 3)
        others = next(r.index for r in found[operator] if "cedar" in r.head)
        assert operator.read(RecordView, str(others)).index == others
        for kind, key in ((RecordView, str(others)), (StatementView, "cedar/current")):
            with pytest.raises(Refused) as caught:
                alder.read(kind, key)
            assert caught.value.refusal.code is Code.NOT_AUTHORISED
        assert alder.read(StatementView, "alder/current").statement


@pytest.mark.parametrize("others_see", ["budgets", "statements"])
def test_a_charter_opens_budgets_or_statements_too(bank_of: Any, others_see: str) -> None:
    bank: Bank = bank_of(others_see)
    with Chamber.at(Path(bank.seat("alder"))) as alder:
        assert partners(alder) == set(SITES)
        assert len(alder.read(RecordsView, "kind=transfer").records) == 3
        if others_see == "statements":
            assert alder.read(StatementView, "cedar/current").statement
        else:
            with pytest.raises(Refused):
                alder.read(StatementView, "cedar/current")


def test_today_members_see_each_others_budgets_and_an_older_charter_keeps_its_bytes() -> None:
    assert charter().accounting.others_see == "budgets"
    assert "others_see" not in charter(accounting={"topups": 3}).model_dump(mode="json")["accounting"]
