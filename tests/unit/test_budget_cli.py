"""What people write and read about money: dates, hours, amounts; tables, quotes, burn-downs."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from commons.errors import ConfigError, HansaError
from commons.views import BudgetView, ChargeView, DisputesView, DisputeView
from governance.burndown import Level, levels
from governance.forecast import Forecast, Free, Spent, forecast
from governance.quotes import PayerQuote, Quote, Span
from hansa.budgets import find_dispute, settle_id
from hansa.burndown import ROWS_MAX, chart, chosen
from hansa.cli import app
from hansa.settings import read_hours, read_micro, read_settings, split_settings
from hansa.statements import (
    budget_table,
    charge_table,
    dispute_text,
    forecast_text,
    instant,
    quote_text,
)

NOW = 1_800_000_000_000


@pytest.mark.parametrize(
    ("feature", "text", "wanted"),
    [
        ("inner-steps", "steps=30", {"steps": 30}),
        ("uplink-codec", "trunk=int8", {"trunk": "int8"}),
        ("outer-step", "nesterov=true", {"nesterov": True}),
        ("grant", "expires=2027-01-31", {"expires_ms": 1_801_353_600_000}),
        ("grant", "expires=2027-01-31T18:00Z", {"expires_ms": 1_801_418_400_000}),
        ("grant", "not_before=2027-01-31T19:00+01:00", {"not_before_ms": 1_801_418_400_000}),
        ("grant", "expires_ms=5", {"expires_ms": 5}),
        ("grant", "amount=12.50EUR", {"amount": 12_500_000}),
        ("grant", "amount=0.000001 EUR", {"amount": 1}),
        ("grant", "amount=250", {"amount": 250}),
        ("grant", "amount=1.5h", {"amount": 5_400_000}),
        ("grant", "unit=device_ms:gpu", {"unit": "device_ms:gpu"}),
        ("rates", "micro_per_gflop=0.02EUR", {"micro_per_gflop": 20_000}),
        ("no-such", "a=b=c", {"a": "b=c"}),
    ],
)
def test_parameters_are_read_as_people_write_them(feature: str, text: str, wanted: dict[str, Any]) -> None:
    assert read_settings(feature, split_settings([text]), "EUR") == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("int8", "expected NAME=VALUE"),
        ("=5", "expected NAME=VALUE"),
        ("expires=soon", "expected a date like 2027-01-31"),
        ("expires=2027", "expected a date like 2027-01-31"),
        ("amount=5 USD", "the consortium's currency is EUR, not USD"),
        ("amount=0.000000001h", "are no hours"),
    ],
)
def test_a_parameter_that_cannot_be_read_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_settings("grant", split_settings([text]), "EUR")


@pytest.mark.parametrize("text", ["", "all of it", "-5", "1.5", "0.0000001EUR", "5 USD", "1e3", "[5]"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_micro(text, "EUR")


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "0.0000000001", "1e9"])
def test_what_are_no_hours_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="are no hours"):
        read_hours(text)


def test_hours_are_exact() -> None:
    assert (read_hours("40"), read_hours("0.1"), read_hours("1.5 h")) == (144_000_000, 360_000, 5_400_000)


@pytest.mark.parametrize("text", ["run-1/3/alder", "settle/run-1/3/alder", "hold/run-1/3/alder"])
def test_a_charge_goes_by_its_id_with_or_without_the_first_word(text: str) -> None:
    assert settle_id(text) == "settle/run-1/3/alder"


def quarrel(digit: str, **changes: Any) -> DisputeView:
    fields: dict[str, Any] = {
        "id": f"sha256:{digit}" + "0" * 63, "transfer": "settle/run-1/3/alder", "partner": "elm", "owner": "alder",
        "amount_micro": 5, "reason": "duplicate", "why": "Twice.", "raised_ms": 1, "index": 9, "open": True,
    }  # fmt: skip
    return DisputeView(**{**fields, **changes})


def test_a_dispute_goes_by_as_much_of_its_digest_as_is_unique() -> None:
    view = DisputesView(currency="EUR", disputes=(quarrel("1"), quarrel("12"[:1] + "1"), quarrel("2")))
    assert find_dispute(view, "2") == view.disputes[2]
    assert find_dispute(view, view.disputes[1].id) == view.disputes[1]
    for which, why in (("1", "names several"), ("3", "names no dispute"), ("", "names no dispute")):
        with pytest.raises(HansaError, match=why):
            find_dispute(view, which)


def test_a_dispute_says_who_ends_it_and_how() -> None:
    assert [line.strip().partition(" ")[0] for line in dispute_text(quarrel("1"), "EUR")] == ["Dispute", "alder,", "elm,", "the"]  # fmt: skip
    ended = quarrel("1", open=False, ended_by="voted", upheld_micro=3)
    assert dispute_text(ended, "EUR")[0].endswith("is voted: elm gets 0.000003 EUR back.")


def test_columns_in_which_nobody_has_anything_are_left_out() -> None:
    plain = BudgetView(
        partner="elm", granted_micro=5, held_micro=0, spent_micro=0, available_micro=5, contributed_micro=0
    )
    head = budget_table([plain], "EUR").splitlines()[0].split()
    assert head == ["in", "EUR", "granted", "held", "spent", "available", "contributed"]
    shown = budget_table([plain, plain.model_copy(update={"disputed_micro": 1, "closed": True})], "EUR")
    assert "disputed" in shown and "elm (left)" in shown and "refunded" not in shown


def test_a_charge_for_a_rejected_update_says_so() -> None:
    charge = ChargeView(
        id="hold/r/1/a", run="r", round=1, site="a", payer="elm", held_micro=5, charged_micro=3,
        state="settled", accepted=False, reversed_micro=1,
    )  # fmt: skip
    head, row = charge_table([charge]).splitlines()
    assert head.split() == ["charge", "payer", "held", "charged", "reversed", "state"]
    assert row.startswith("r/1/a") and row.endswith("settled (rejected update)")


def span(**changes: Any) -> Span:
    return Span(**{"round_micro": 5, "rest_micro": 10, "run_micro": 20, "lacks_from": None, **changes})


def asked(before: Span, after: Span, **changes: Any) -> Quote:
    payer = PayerQuote("elm", 100, 0, 0, before, after)
    fields = {
        "currency": "EUR",
        "run": "r",
        "from_round": 3,
        "last_round": 4,
        "payers": (payer,),
        "assumed": (),
    }
    return Quote(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (span(), span(lacks_from=3), "elm lacks budget from round 3 on; without the change it does not:"),
        (span(lacks_from=4), span(lacks_from=3), "from round 3 on; without the change from round 4 on:"),
        (span(lacks_from=3), span(lacks_from=3), "from round 3 on, as it does without the change:"),
        (span(lacks_from=3), span(), "elm would no longer lack budget (without the change: from round 3 on)."),
    ],
)  # fmt: skip
def test_a_quote_says_who_lacks_budget_with_and_without_the_change(
    before: Span, after: Span, says: str
) -> None:
    assert says in quote_text(asked(before, after))


def test_a_quote_shows_what_changes_and_what_stays() -> None:
    text = quote_text(asked(span(), span(round_micro=7)))
    assert "0.000005 -> 0.000007" in text and text.count("->") == 1
    assert "for 2 of its rounds" in text
    dearer = (span(), span(round_micro=7))
    assert "has no round left" in quote_text(asked(*dearer, from_round=5))
    assert "rest of" not in quote_text(asked(*dearer, run=""))
    assert "whole lease" in quote_text(asked(*dearer, assumed=("berlin",)))
    assert quote_text(asked(span(), span())) == "No round gets dearer or cheaper by it."
    assert "0.000005 -> 0.000007" in quote_text(asked(*dearer), is_law=True)


def burning(*micros: int, free: int = 1000, run_rounds: int = 0) -> Forecast:
    spent = [Spent("r", n, NOW - 1000 * (len(micros) - n), m) for n, m in enumerate(micros, 1)]
    return forecast("elm", spent, [Free(free)], available_micro=free, run_rounds=run_rounds, now_ms=NOW)


def test_a_burn_down_goes_on_at_this_pace_until_the_budget_or_the_run_ends() -> None:
    assert [(level.left_micro, level.ahead) for level in levels(burning(400, 400, free=900, run_rounds=4))] == [
        (1300, False), (900, False), (500, True), (100, True),
    ]  # fmt: skip
    inside = levels(burning(100, 100, free=5000, run_rounds=2))
    assert [level.label for level in inside] == ["r round 1", "r round 2", "in 1 round", "in 2 rounds"]
    assert len(levels(burning(1, 1, 1))) == 6, "without a run, as many ahead as there were"


@pytest.mark.parametrize("past", [0, 1, 5, 40, 300])
@pytest.mark.parametrize("ahead", [0, 1, 40])
def test_a_long_burn_down_keeps_its_first_row_its_last_and_the_one_of_now(past: int, ahead: int) -> None:
    rows = [Level(str(n), 1, n >= past) for n in range(past + ahead)]
    kept = chosen(rows)
    assert len(kept) <= ROWS_MAX and kept == sorted(kept, key=rows.index)
    for wanted in (rows[:1], rows[-1:], rows[past - 1 : past] if past else []):
        assert all(level in kept for level in wanted)


def test_a_chart_fits_the_terminal_and_nothing_charged_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = chart(burning(400, 400), "EUR").splitlines()
    assert len(lines) == 4 and all(len(line) <= 60 for line in lines)
    assert lines[0].endswith("0.0014 EUR"), lines
    assert chart(burning(), "EUR") == ""


def test_a_forecast_in_words_names_what_is_lacking_and_what_to_do() -> None:
    text = "\n".join(forecast_text(burning(400, 400, free=900, run_rounds=4), "EUR"))
    assert "spends 0.0004 EUR a round (mean of the last 2)" in text
    assert "pays for 2 more rounds, until" in text
    assert "4 rounds to go and 0.0008 EUR too little" in text
    assert "member=elm" in text


def test_times_beyond_the_calendar_are_no_accident() -> None:
    assert instant(10**17) == "after the year 9999"
    assert instant(0) == "1970-01-01 00:00 UTC"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("quote",), "--feature with its parameters, or --proposal"),
        (("quote", "--feature", "rates", "--proposal", "1"), "--feature with its parameters, or --proposal"),
        (("quote", "--feature", "rates", "-s", "cpu"), "expected NAME=VALUE"),
        (("rule", "1"), "--withdraw (the payer) or --concede"),
        (("rule", "1", "--withdraw", "--concede"), "--withdraw (the payer) or --concede"),
        (("convert", "gpu", "many"), "are no hours"),
        (("dispute", "run-1/1/a", "--reason", "greed", "--why", "x"), "greed"),
        (("reverse", "run-1/1/a", "--reason", "duplicate"), "this folder holds no seat"),
    ],
)
def test_a_mistake_in_a_command_is_told_before_anybody_is_asked(
    arguments: tuple[str, ...], says: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["budget", *arguments])
    assert done.exit_code not in (0, 70), done.output
    assert says in done.output
    assert list(tmp_path.iterdir()) == []
