"""Views as plain tables for a person."""

from __future__ import annotations

from collections.abc import Sequence

from commons.views import (
    BudgetView,
    ChargeView,
    DisputeView,
    PledgeView,
    RateCardView,
    RunView,
    SiteView,
)
from commons.written import instant, money, moneys, size
from governance.forecast import RECENT_ROUNDS, Forecast
from governance.quotes import PayerQuote, Quote, Span
from hansa.output import table


def budget_table(budgets: Sequence[BudgetView], currency: str) -> str:
    """Columns in which nobody has anything are left out, but for the first ones that everybody looks for."""
    columns = [
        ("granted", [b.granted_micro for b in budgets]),
        ("refunded", [b.refunded_micro for b in budgets]),
        ("held", [b.held_micro for b in budgets]),
        ("spent", [b.spent_micro for b in budgets]),
        ("disputed", [b.disputed_micro for b in budgets]),
        ("expired", [b.expired_micro for b in budgets]),
        ("later", [b.later_micro for b in budgets]),
        ("available", [b.available_micro for b in budgets]),
        ("contributed", [b.contributed_micro for b in budgets]),
    ]
    seldom = ("refunded", "disputed", "expired", "later")
    shown = [(name, values) for name, values in columns if name not in seldom or any(values)]
    cells = iter(moneys(*(value for _, values in shown for value in values)))
    written = [[next(cells) for _ in budgets] for _ in shown]
    names = [b.partner + (" (left)" if b.closed else "") for b in budgets]
    head = (f"in {currency}", *(name for name, _ in shown))
    return table(head, zip(names, *written, strict=True))


def charge_table(charges: Sequence[ChargeView]) -> str:
    head = ["charge", "payer", "held", "charged"]
    columns = [moneys(*(c.held_micro for c in charges)), moneys(*(c.charged_micro for c in charges))]
    for name, values in (
        ("reversed", [c.reversed_micro for c in charges]),
        ("disputed", [c.disputed_micro for c in charges]),
    ):
        if any(values):
            head.append(name)
            columns.append(moneys(*values))
    names = [c.id.removeprefix("hold/") for c in charges]
    states = [c.state if c.accepted else f"{c.state} (rejected update)" for c in charges]
    rows = zip(names, [c.payer for c in charges], *columns, states, strict=True)
    return table([*head, "state"], rows)


def grant_table(budgets: Sequence[BudgetView]) -> str:
    """What budgets are made of, in the order it is spent."""
    lots = [(b.partner, lot) for b in budgets for lot in b.lots]
    amounts = moneys(*(lot.amount_micro for _, lot in lots))
    free = moneys(*(lot.free_micro for _, lot in lots))
    rows = [
        (partner, lot.id, amount, left, lot.priority, _date(lot.not_before_ms, "at once"), _date(lot.expires_ms, "never"))
        for (partner, lot), amount, left in zip(lots, amounts, free, strict=True)
    ]  # fmt: skip
    return table(("partner", "from", "amount", "free", "priority", "begins", "expires"), rows)


def pledge_table(pledges: Sequence[PledgeView]) -> str:
    rows = [(p.partner, p.device, f"{p.amount_ms / 3_600_000:.3f}") for p in pledges]
    return table(("partner", "pledged time of", "hours left"), rows)


def rate_table(cards: Sequence[RateCardView]) -> str:
    """The newest card first."""
    rows = [
        (_date(card.since_ms, "the start"), card.digest.removeprefix("sha256:")[:12], r.device, r.precision,
         *moneys(r.micro_per_gflop, r.micro_per_pflop, r.micro_per_device_second), r.peak_gflops or "-")
        for card in reversed(cards)
        for r in card.rates
    ]  # fmt: skip
    head = ("since", "card", "device", "precision", "per gflop", "per pflop", "per second", "peak gflops")
    return table(head, rows)


def dispute_table(disputes: Sequence[DisputeView]) -> str:
    amounts = moneys(*(d.amount_micro for d in disputes))
    rows = [
        (
            short(d.id),
            d.transfer.removeprefix("settle/"),
            d.partner,
            d.owner,
            amount,
            d.reason,
            _outcome(d),
            d.why,
        )
        for d, amount in zip(disputes, amounts, strict=True)
    ]
    return table(("dispute", "charge", "payer", "owner", "amount", "reason", "state", "why"), rows)


def dispute_text(d: DisputeView, currency: str) -> list[str]:
    """Where one dispute stands and who ends it how."""
    amount, name = money(d.amount_micro, currency), short(d.id)
    said = f"Dispute {name} (journal record {d.index}) about {amount} of {d.transfer}"
    if not d.open:
        return [f"{said} is {d.ended_by}: {d.partner} gets {money(d.upheld_micro or 0, currency)} back."]
    return [
        f"{said} is open; until it ends the amount rests in suspense.",
        f"  {d.owner}, who owns the site, can concede it: hansa budget rule {name} --concede",
        f"  {d.partner}, who paid, can withdraw it: hansa budget rule {name} --withdraw",
        f"  the members can decide it: hansa proposal open ruling -s dispute={d.id} -s upheld_micro=...",
    ]


def _outcome(dispute: DisputeView) -> str:
    if dispute.open:
        return "open"
    back = f"{money(dispute.upheld_micro or 0)} given back"
    return f"{dispute.ended_by}: {back}"


def short(digest: str) -> str:
    """How people name a digest; enough of it to be found."""
    return digest.removeprefix("sha256:")[:12]


def quote_text(quote: Quote, *, is_law: bool = False) -> str:
    """Before and after, for each payer; who would lack budget; what was assumed. `is_law`: what it did change."""
    head = [f"in {quote.currency}, at most", "each round"]
    spans = [(p.before, p.after) for p in quote.payers]
    columns = [_changes([(b.round_micro, a.round_micro) for b, a in spans])]
    names = [p.payer for p in quote.payers]
    if is_law:
        head.append("a full run")
        columns.append(_changes([(b.run_micro, a.run_micro) for b, a in spans]))
        if any(p.granted_micro or p.later_micro for p in quote.payers):
            head.append("granted")
            columns.append(moneys(*(p.granted_micro + p.later_micro for p in quote.payers)))
        return table(head, zip(names, *columns, strict=True))
    if not any(p.granted_micro or p.later_micro or _costs(p.before) != _costs(p.after) for p in quote.payers):
        return "\n".join(
            ["No round gets dearer or cheaper by it.", *(line for p in quote.payers for line in _lack(p))]
        )
    if quote.run:
        head.append(f"rest of {quote.run}")
        columns.append(_changes([(b.rest_micro, a.rest_micro) for b, a in spans]))
    head.append("a full run")
    columns.append(_changes([(b.run_micro, a.run_micro) for b, a in spans]))
    head.append("available")
    columns.append(_changes([(p.available_micro, p.available_micro + p.granted_micro) for p in quote.payers]))
    if any(p.later_micro for p in quote.payers):
        head.append("later")
        columns.append(moneys(*(p.later_micro for p in quote.payers)))
    lines = [table(head, zip(names, *columns, strict=True))]
    left = max(0, quote.last_round - quote.from_round + 1)
    if quote.run and not left:
        lines.append(f"{quote.run} has no round left that it could be in force for.")
    elif quote.run:
        lines.append(
            f"In force from round {quote.from_round} of {quote.run}, for {left} of its rounds, if it passes by then."
        )
    for p in quote.payers:
        lines += _lack(p)
    if quote.assumed:
        lines.append(
            f"Time at {', '.join(quote.assumed)} is taken to be the whole lease: nothing is known of it yet."
        )
    return "\n".join(lines)


def _costs(span: Span) -> tuple[int, int]:
    return span.round_micro, span.run_micro


def _changes(pairs: Sequence[tuple[int, int]]) -> list[str]:
    amounts = moneys(*(value for pair in pairs for value in pair))
    cells = list(zip(amounts[::2], amounts[1::2], strict=True))
    return [before if before == after else f"{before} -> {after}" for before, after in cells]


def _lack(payer: PayerQuote) -> list[str]:
    before, after = payer.before.lacks_from, payer.after.lacks_from
    if after is None and before is None:
        return []
    if after is None:
        return [f"{payer.payer} would no longer lack budget (without the change: from round {before} on)."]
    without = {None: "; without the change it does not", after: ", as it does without the change"}
    compared = without.get(before, f"; without the change from round {before} on")
    return [
        f"{payer.payer} lacks budget from round {after} on{compared}: the sites it pays for would sit out."
    ]


def forecast_table(found: Sequence[Forecast], currency: str) -> str:
    head = (
        f"in {currency}",
        "available",
        "per round",
        "per day",
        "rounds left",
        "used up",
        "the running run",
    )
    cells = moneys(*(v for f in found for v in (f.available_micro, f.round_micro, f.day_micro)))
    rows = [
        (
            f.partner,
            *cells[3 * n : 3 * n + 3],
            "-" if f.rounds_left is None else f.rounds_left,
            _used_up(f),
            _run(f),
        )
        for n, f in enumerate(found)
    ]
    return table(head, rows)


def forecast_text(f: Forecast, currency: str) -> list[str]:
    """One partner's forecast in words."""
    if not f.round_micro:
        return [
            f"{f.partner} has {money(f.available_micro, currency)} available and was charged for nothing yet."
        ]
    recent = min(len(f.rounds), RECENT_ROUNDS)
    pace = f"{money(f.round_micro, currency)} a round (mean of the last {recent})"
    if f.day_micro:
        pace += f", {money(f.day_micro, currency)} a day of such rounds"
    lines = [f"{f.partner} has {money(f.available_micro, currency)} available and spends {pace}."]
    if f.rounds_left is None:
        lines.append("At this pace it lasts longer than anybody counts.")
    elif not f.rounds_left:
        lines.append("That does not pay for another round.")
    else:
        when = f", until {instant(f.exhausted_ms)}" if f.exhausted_ms is not None else ""
        lines.append(f"At this pace it pays for {f.rounds_left} more rounds{when}.")
    if f.expiring_micro:
        lines.append(f"{money(f.expiring_micro, currency)} of it expire before they are spent.")
    if f.run_rounds and f.lacking_micro:
        lines.append(
            f"The running run has {f.run_rounds} rounds to go and {money(f.lacking_micro, currency)} too little for "
            f"them. The members grant more: hansa proposal open grant -s name=... -s member={f.partner} -s amount=..."
        )
    elif f.run_rounds:
        lines.append(f"The running run has {f.run_rounds} rounds to go and finishes inside the budget.")
    lines += ["", table(("day", f"charged in {currency}"), [(_date(day, ""), money(m)) for day, m in f.days])]
    return lines


def _used_up(f: Forecast) -> str:
    if f.rounds_left == 0:
        return "now"
    return "-" if f.exhausted_ms is None else instant(f.exhausted_ms)


def _run(f: Forecast) -> str:
    if not f.run_rounds or not f.round_micro:
        return "-"
    return f"lacks {money(f.lacking_micro)}" if f.lacking_micro else "is paid for"


def _date(at_ms: int, none: str) -> str:
    """The day, and the time where it is not midnight."""
    if not at_ms:
        return none
    return instant(at_ms).replace(" 00:00 UTC", "")


def run_line(view: RunView) -> str:
    """One line for a pipe: the run's position and each site's state."""
    sites = "; ".join(f"{s.site} {s.state}" + (f" ({s.why})" if s.why else "") for s in view.sites)
    return f"run {view.run}: {view.phase}, round {view.round}/{view.rounds}, charter v{view.charter_version}; {sites}"


def run_table(view: RunView) -> str:
    noised = any(s.epsilon is not None for s in view.sites)
    head = (
        "site",
        "state",
        "step",
        "tokens/s",
        "loss",
        "up",
        "down",
        "spend left",
        *["epsilon"] * noised,
        "why",
    )
    rows = [
        (s.site, s.state, f"{s.step}/{s.steps}", f"{s.tokens_per_s:.0f}", "-" if s.loss is None else f"{s.loss:.3f}",
         size(s.bytes_up), size(s.bytes_down), money(s.spend_left_micro), *[_epsilon(s)] * noised, s.why)
        for s in view.sites
    ]  # fmt: skip
    return table(head, rows)


def _epsilon(site: SiteView) -> str:
    """What it has spent of what it may spend."""
    return "-" if site.epsilon is None else f"{site.epsilon:.2f}/{site.epsilon_max:g}"
