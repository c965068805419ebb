"""Views as plain tables for a person."""

from __future__ import annotations

from collections.abc import Sequence

from commons.views import BudgetView, ChargeView, ProposalView, RunView
from hansa.output import money, moneys, size, table


def budget_table(budgets: Sequence[BudgetView], currency: str) -> str:
    head = (f"in {currency}", "granted", "held", "spent", "free", "contributed")
    amounts = moneys(
        *(
            amount
            for b in budgets
            for amount in (
                b.granted_micro,
                b.held_micro,
                b.spent_micro,
                b.available_micro,
                b.contributed_micro,
            )
        )
    )
    return table(head, [(b.partner, *amounts[5 * n : 5 * n + 5]) for n, b in enumerate(budgets)])


def charge_table(charges: Sequence[ChargeView]) -> str:
    head = ("run", "round", "site", "payer", "held", "charged", "state")
    held, charged = moneys(*(c.held_micro for c in charges)), moneys(*(c.charged_micro for c in charges))
    rows = [
        (c.run, c.round, c.site, c.payer, *amounts, c.state)
        for c, *amounts in zip(charges, held, charged, strict=True)
    ]
    return table(head, rows)


def proposal_table(proposals: tuple[ProposalView, ...]) -> str:
    head = ("proposal", "title", "by", "feature", "state", "for", "against", "abstain", "from round")
    rows = [
        (f"P-{p.number:04d}", p.title, p.proposer, p.feature, p.state, p.for_weight, p.against_weight,
         p.abstain_weight, p.executed_round or p.effective_round)
        for p in proposals
    ]  # fmt: skip
    return table(head, rows)


def proposal_text(p: ProposalView) -> str:
    parameters = ", ".join(f"{k}={v}" for k, v in p.parameters.items()) or "none"
    of = sum(p.electorate.values())
    lines = [
        f"P-{p.number:04d}  {p.title}",
        f"  by {p.proposer}: feature {p.feature}, {parameters}",
        f"  {p.state}: {p.for_weight} for, {p.against_weight} against, {p.abstain_weight} abstain of {of} votes",
    ]
    lines += [f"    {b.voter}: {b.choice} (journal record {b.index})" for b in p.ballots]
    match p.executed_round:
        case None:
            lines.append(f"  takes effect from round {p.effective_round} at the earliest")
        case number:
            lines.append(f"  in force since round {number}, charter version {p.charter_version}")
    lines += [f"    {change.get('op')} {change.get('path')} = {change.get('value')}" for change in p.patch]
    return "\n".join([*lines, f"  id {p.id}"])


def run_line(view: RunView) -> str:
    """One line for a pipe: the run's position and each site's state."""
    sites = "; ".join(f"{s.site} {s.state}" + (f" ({s.why})" if s.why else "") for s in view.sites)
    return f"run {view.run}: {view.phase}, round {view.round}/{view.rounds}, charter v{view.charter_version}; {sites}"


def run_table(view: RunView) -> str:
    head = ("site", "state", "step", "tokens/s", "loss", "up", "down", "spend left", "why")
    rows = [
        (s.site, s.state, f"{s.step}/{s.steps}", f"{s.tokens_per_s:.0f}", "-" if s.loss is None else f"{s.loss:.3f}",
         size(s.bytes_up), size(s.bytes_down), money(s.spend_left_micro), s.why)
        for s in view.sites
    ]  # fmt: skip
    return table(head, rows)
