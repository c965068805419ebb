"""Proposals for a person: the list, one with all that concerns it, and what a change would change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from commons.views import ProposalView
from commons.written import money
from hansa.output import table

Change = tuple[str, Any, Any]
"""(JSON pointer, old value, new value)"""


def proposal_table(proposals: tuple[ProposalView, ...]) -> str:
    head = ("proposal", "title", "by", "feature", "state", "for", "against", "abstain", "from round")
    rows = [
        (f"P-{p.number:04d}", p.title, p.proposer, p.feature, p.state, p.for_weight, p.against_weight,
         p.abstain_weight, p.executed_round or p.effective_round)
        for p in proposals
    ]  # fmt: skip
    if not any(p.needs_micro or p.pledges for p in proposals):
        return table(head, rows)
    pledged = [
        money(p.pledged_micro) + (f" of {money(p.needs_micro)}" * bool(p.needs_micro)) for p in proposals
    ]
    return table((*head, "pledged"), [(*row, said) for row, said in zip(rows, pledged, strict=True)])


def proposal_text(p: ProposalView) -> str:
    parameters = ", ".join(f"{k}={v}" for k, v in p.parameters.items()) or "none"
    of = sum(p.electorate.values())
    lines = [
        f"P-{p.number:04d}  {p.title}",
        f"  by {p.proposer}: {p.type}, feature {p.feature}, {parameters}",
        f"  {p.state}: {p.for_weight} for, {p.against_weight} against, {p.abstain_weight} abstain of {of} votes",
        f"  {rules_text(p)}",
        *_times(p),
    ]
    lines += [f"    {b.voter}: {b.choice} (journal record {b.index})" for b in p.ballots]
    lines += [f"    {m.member} moves to {m.motion}: {m.reason} ({_at(m.at_ms)})" for m in p.motions]
    if p.needs_micro:
        lines.append(
            f"  is carried out only with pledges of {money(p.needs_micro)}; {money(p.pledged_micro)} stand"
        )
    lines += [
        f"    {g.member} pledges {money(g.amount_micro)} for {g.to} until {_at(g.expires_ms)}: {g.state}"
        for g in p.pledges
    ]
    if p.dormant:
        lines.append(f"  quorums do not wait for {', '.join(p.dormant)}, who missed three votes in a row")
    if p.tiers:
        lines.append("  order: " + "; ".join(f"{n}. {', '.join(tier)}" for n, tier in enumerate(p.tiers, 1)))
    match p.executed_round:
        case None:
            lines.append(f"  takes effect from round {p.effective_round} at the earliest")
        case number:
            lines.append(f"  in force since round {number}, charter version {p.charter_version}")
    lines += [f"    {change.get('op')} {change.get('path')} = {change.get('value')}" for change in p.patch]
    return "\n".join([*lines, f"  id {p.id}"])


def rules_text(p: ProposalView) -> str:
    """What it needs, in a sentence."""
    if p.objection:
        return f"becomes law unless {p.objection} of all weight is against it"
    if p.candidates:
        how = f"with {p.credits} credits each, n votes cost n^2" if p.credits else "ranked"
        return f"an order of {', '.join(p.candidates)}, {how}; it binds nobody"
    share = f" and at least {p.share}" if p.share else ""
    heads = f"; at least {p.members} of all members by head" if p.members else ""
    return (
        f"needs {p.quorum_percent} % turnout; more than {p.pass_percent} %{share} of for and against{heads}"
    )


def diff_text(changes: Sequence[Change]) -> list[str]:
    """One line for each value that differs."""
    return [f"  {at}: {_value(old)} -> {_value(new)}" for at, old, new in changes] or ["  nothing differs"]


def _times(p: ProposalView) -> list[str]:
    match p.state:
        case "pending":
            return [f"  voting begins {_at(p.opened_ms)}; {p.proposer} may withdraw it until then"]
        case "active" | "paused":
            return [f"  voting ends {_at(p.closes_ms)}, or when all have voted"]
        case "queued" if p.eta_ms is not None:
            officers = f"; {', '.join(p.officers)} may veto it until then" if p.officers else ""
            return [f"  may be carried out from {_at(p.eta_ms)}{officers}"]
        case "vetoed":
            return [f"  the members can lift the veto: hansa proposal open override-veto -s proposal={p.id}"]
        case _:
            return []


def _at(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _value(value: Any) -> str:
    return "-" if value is None else json.dumps(value, ensure_ascii=False)
