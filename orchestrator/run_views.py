"""A run as small views: where it is now, its curves, its last rounds site by site. Call them while views stand still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.names import SiteId
from commons.run_views import (
    POINTS_MAX,
    ROUNDS_SHOWN,
    CurvesView,
    NowView,
    PartView,
    PointView,
    RoundDetailView,
    RoundsView,
)
from commons.views import RunView
from orchestrator.board import round_view
from orchestrator.desk import Desk
from orchestrator.progress import Admitted, RoundState, RunState

LAST = 2


def now_view(run: RunState, shown: RunView) -> NowView:
    """`shown`: the run as `orchestrator.board` has it, with its last rounds."""
    return NowView(
        **{name: getattr(shown, name) for name in RunView.model_fields},
        closed=run.closed,
        tokens=sum(_tokens(found) for found in run.history),
        opened_ms=run.opened_ms,
    )


def _tokens(found: RoundState) -> int:
    return sum(a.update.tokens for a in (*found.admitted.values(), *found.late.values()))


def curves_view(desk: Desk, key: str) -> CurvesView | Refusal:
    """Of the run `key`, empty: the latest."""
    run = desk.runs.find(key)
    if isinstance(run, Refusal):
        return run
    charters = desk.consortium.members.charters
    domains = list(dict.fromkeys(site.domain for site in desk.consortium.charter.sites))
    closed = [found for found in run.history if found.closed_ms is not None]
    return CurvesView(
        run=run.run,
        domains=tuple(domains),
        points=tuple(
            _point(found, charters[found.charter_version], domains) for found in closed[-POINTS_MAX:]
        ),
        evaluation={note.domain: note.loss for _, (_, note) in sorted(run.evaluations.items())},
    )


def _point(found: RoundState, charter: Charter, domains: Sequence[str]) -> PointView:
    of = {site.name: site.domain for site in charter.sites}
    told: dict[str, list[float]] = {}
    losses = []
    for site, admitted in found.admitted.items():
        update = admitted.update
        if update.loss is not None:
            losses.append(update.loss)
        if update.held_out_loss is not None:
            told.setdefault(of.get(site, ""), []).append(update.held_out_loss)
    return PointView(
        round=found.number,
        closed_ms=found.closed_ms or 0,
        loss=_mean(losses),
        held_out=tuple(_mean(told.get(domain, [])) for domain in domains),
        probe_loss=found.probe_loss,
        rolled_back=found.verdict == "rolled-back",
        tokens=_tokens(found),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def rounds_view(desk: Desk, key: str) -> RoundsView | Refusal:
    name, _, last = key.partition("/")
    run = desk.runs.find(name)
    if isinstance(run, Refusal):
        return run
    if last and not (last.isascii() and last.isdecimal() and len(last) < 10):
        return Refusal(Code.REQUEST_INVALID, f"no round goes by {last[:20]!r}; a round is a number")
    end = min(int(last), len(run.history)) if last else len(run.history)
    charters = desk.consortium.members.charters
    shown = run.history[max(0, end - ROUNDS_SHOWN) : end]
    return RoundsView(
        run=run.run,
        rounds=tuple(_detail(run, found, charters) for found in shown),
        total=len(run.history),
    )


def _detail(run: RunState, found: RoundState, charters: Mapping[int, Charter]) -> RoundDetailView:
    view = round_view(run, found, charters[found.charter_version])
    sites = sorted({*found.holds, *found.left_out, *found.late})
    return RoundDetailView(
        **{name: getattr(view, name) for name in type(view).model_fields},
        attempt=found.attempt,
        quorum=found.quorum,
        quorum_ms=found.quorum_ms,
        lease_until_ms=found.lease_until_ms,
        parts=tuple(_part(run, found, site) for site in sites),
    )


def _part(run: RunState, found: RoundState, site: SiteId) -> PartView:
    admitted: Admitted | None = found.update(site)
    usage = found.usage(site)
    rejected = found.rejected.get(site) or found.left_out.get(site)
    taken = next((r.number for r in run.history if r.takes.get(site) == found.number), None)
    return PartView(
        site=site,
        assigned_ms=found.assigned_ms.get(site, 0),
        admitted_ms=admitted.at_ms if admitted else None,
        rejected_ms=rejected.at_ms if rejected else None,
        started_ms=usage.started_ms if usage else 0,
        ended_ms=usage.ended_ms if usage else 0,
        tokens=admitted.update.tokens if admitted else 0,
        gflop=usage.gflop if usage else 0,
        payload_bytes=admitted.update.payload_bytes if admitted else 0,
        held_micro=found.holds.get(site, 0),
        code=rejected.code if rejected else "",
        index=admitted.index if admitted else None,
        late_for=taken if site in found.late else None,
    )
