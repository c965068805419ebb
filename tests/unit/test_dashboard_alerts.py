"""What the dashboard calls wrong, and whom it asks to act."""

from __future__ import annotations

from typing import Any

import pytest

from commons.roll_views import AccessView, MembersView, MemberView
from commons.run_views import NowView, PartView, RoundDetailView, RoundsView
from commons.views import (
    BallotView,
    BudgetsView,
    BudgetView,
    ChargeView,
    JournalView,
    LotView,
    ProposalsView,
    ProposalView,
    SiteView,
)
from governance.dashboard.alerts import EXPIRING_MS, UNWITNESSED_MS, Alert, Scene, alerts
from tests.support.chamber import charter

NOW = 1_800_000_000_000
HOUR = 3_600_000
WITNESSED = charter(witnesses={"quorum": 1})


def run(phase: str = "training", **changes: Any) -> NowView:
    fields: dict[str, Any] = {
        "run": "run-1",
        "phase": phase,
        "round": 3,
        "rounds": 9,
        "charter_version": 1,
        "state": "",
    }
    return NowView(**{**fields, **changes})


def site(state: str, why: str = "", **changes: Any) -> SiteView:
    return SiteView(
        site="berlin", partner="acme", payer="acme", domain="law", state=state, why=why, **changes
    )


def rounds(*found: RoundDetailView) -> RoundsView:
    return RoundsView(run="run-1", rounds=found, total=len(found))


def closed(number: int, **changes: Any) -> RoundDetailView:
    opened = NOW - 10 * HOUR
    fields: dict[str, Any] = {
        "round": number,
        "charter_version": 1,
        "base": "",
        "opened_ms": opened,
        "closed_ms": opened + 60_000,
    }
    return RoundDetailView(**{**fields, **changes})


def open_since(ms: int) -> RoundDetailView:
    parts = (
        PartView(site="berlin", assigned_ms=ms),
        PartView(site="turin", assigned_ms=ms, admitted_ms=ms + 9),
    )
    return RoundDetailView(round=2, charter_version=1, base="", opened_ms=ms, parts=parts)


def vote(closes_in_ms: int, *voters: str, **changes: Any) -> ProposalsView:
    ballots = tuple(BallotView(voter=v, choice="for", index=n) for n, v in enumerate(voters))
    fields: dict[str, Any] = {
        "id": "sha256:1", "number": 7, "title": "Half the steps", "proposer": "acme", "feature": "inner-steps",
        "parameters": {}, "state": "active", "opened_ms": NOW + closes_in_ms - 24 * HOUR, "closes_ms": NOW + closes_in_ms,
        "effective_round": 1, "electorate": {"acme": 1, "beta": 1, "coop": 1}, "for_weight": len(voters), "ballots": ballots,
    }  # fmt: skip
    return ProposalsView(proposals=(ProposalView(**{**fields, **changes}),))


def budget(free_micro: int, spent_micro: int) -> BudgetsView:
    charges = tuple(
        ChargeView(
            id=f"hold/{n}", run="run-1", round=n, site="berlin", payer="acme", held_micro=10, charged_micro=spent_micro,
            state="settled", ended_ms=NOW - HOUR + n * 60_000,
        )
        for n in (1, 2)
    )  # fmt: skip
    lot = LotView(
        id="grant", amount_micro=free_micro, free_micro=free_micro, priority=1, not_before_ms=0, expires_ms=0
    )
    whole = BudgetView(
        partner="acme", granted_micro=free_micro, held_micro=0, spent_micro=0, available_micro=free_micro,
        contributed_micro=0, lots=(lot,),
    )  # fmt: skip
    return BudgetsView(currency="EUR", budgets=(whole,), charges=charges)


def members(until_ms: int = 0, ballot_key_ms: int = 0) -> MembersView:
    held = AccessView(subject="member acme", partner="acme", joined=True, certificate_until_ms=until_ms)
    member = MemberView(member="acme", key="", ballot_key="acme/ballot", ballot_key_until_ms=ballot_key_ms)
    return MembersView(charter_version=1, members=(member,), sites=(), access=(held,))


def journal(waits_ms: int | None) -> JournalView:
    since = None if waits_ms is None else NOW - waits_ms
    return JournalView(size=9, root="", checkpoint="", unwitnessed_since_ms=since)


WRONG: dict[str, tuple[dict[str, Any], str, str]] = {
    "no witnesses": ({"charter": charter(), "journal": journal(None)}, "Nobody witnesses", "Any member"),
    "witnesses are away": ({"charter": WITNESSED, "journal": journal(UNWITNESSED_MS + 1)}, "have waited 5 min", "Operators"),
    "a run was stopped": ({"run": run("stopped", reason="the disk is full")}, "the disk is full", "The operator"),
    "a run is held up": ({"run": run(reason="no disk")}, "held up: no disk", "The operator"),
    "a site is refused": ({"run": run(sites=(site("refused", "its policy forbids fp8"),))}, "forbids fp8", "acme"),
    "privacy is nearly spent": (
        {"run": run(sites=(site("training", epsilon=7.5, epsilon_max=8.0),))}, "7.50 of epsilon 8", "acme and the members",
    ),
    "an update was rejected": ({"rounds": rounds(closed(1, rejected={"berlin": "it holds NaN"}))}, "it holds NaN", "berlin"),
    "a round was rolled back": (
        {"rounds": rounds(closed(1, verdict="rolled-back", probe_change_ppm=31_000))}, "by 3.10 %", "The members",
    ),
    "a round takes long": (
        {"run": run(), "rounds": rounds(closed(1), open_since(NOW - 130_000))}, "open for 2 min 10 s", "waits for berlin.",
    ),
    "a run is not paid for": ({"run": run(), "budgets": budget(30, 10)}, "acme lacks 0.00003 EUR", "The members grant"),
    "a vote lacks its quorum": ({"proposals": vote(HOUR, "acme")}, "P-0007 closes in 60 min", "beta, coop"),
    "a certificate expires": ({"members": members(NOW + EXPIRING_MS - 1)}, "member acme expires in", "acme joins again"),
    "a certificate has expired": ({"members": members(NOW)}, "has expired", "acme joins again"),
    "a ballot key expires": ({"members": members(0, NOW + HOUR)}, "ballot key of acme", "acme delegates"),
}  # fmt: skip


@pytest.mark.parametrize(("seen", "what", "who"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_with_who_acts(seen: dict[str, Any], what: str, who: str) -> None:
    (found,) = alerts(Scene(NOW, **seen))
    assert what in found.what and who in found.who, found


FINE: dict[str, dict[str, Any]] = {
    "nothing yet": {},
    "witnesses keep up": {"charter": WITNESSED, "journal": journal(UNWITNESSED_MS - 1)},
    "a run that is over": {"run": run("finished", reason="all rounds are done", sites=(site("offline"),))},
    "a run that is paid for": {"run": run(), "budgets": budget(600, 10)},
    "a round that takes its time": {"run": run(), "rounds": rounds(closed(1), open_since(NOW - 110_000))},
    "a vote with its quorum": {"proposals": vote(HOUR, "acme", "beta")},
    "a vote that has just begun": {"proposals": vote(20 * HOUR)},
    "a quorum without the dormant": {"proposals": vote(HOUR, "acme", dormant=("beta", "coop"))},
    "a certificate for long": {"members": members(NOW + 2 * EXPIRING_MS)},
}


@pytest.mark.parametrize("seen", FINE.values(), ids=FINE.keys())
def test_nothing_is_said_where_nothing_is_wrong(seen: dict[str, Any]) -> None:
    assert alerts(Scene(NOW, **seen)) == []


def test_the_worst_comes_first() -> None:
    scene = Scene(NOW, run=run(sites=(site("offline", "its operator starts it"), site("refused", "no"))))
    found: list[Alert] = alerts(scene)
    assert [alert.level for alert in found] == ["bad", "warn"]
