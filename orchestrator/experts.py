"""The roll of experts: whose they are, since when, and how much went through each, from charter and journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from commons.views import ExpertsView, ExpertView
from commons.work import UpdateNote, routed_tokens
from orchestrator.desk import Desk
from orchestrator.progress import RunState


def experts_view(desk: Desk) -> ExpertsView:
    """Call it while the journal's views stand still."""
    members, run = desk.consortium.members, desk.runs.latest
    charter, expert_map = members.charter, desk.expert_map(members.charter.version)
    like = {a.expert: a.like for a in charter.added}
    size = expert_map.parameters().expert
    trained, since = Counter[str](), dict[str, int]()
    routed: dict[str, Counter[str]] = {}
    for found in run.history if run else ():
        for expert in members.charters[found.charter_version].experts:
            since.setdefault(expert, found.number)
    for number, update in _updates(run):
        assert run is not None
        then = members.charters[run.history[update.round - 1].charter_version]
        owners, sender = then.owners, then.site(update.site)
        assert sender is not None, "a site of that charter sent it"
        for expert, tokens in routed_tokens(update.routed).items():
            routed.setdefault(expert, Counter())[sender.domain] += tokens
        trained |= Counter({e: number for e, site in owners.items() if site == update.site})
    experts = []
    for index, expert in enumerate(charter.experts):
        site = charter.owner(expert)
        experts.append(
            ExpertView(
                expert=expert,
                index=index,
                site=site.name if site else None,
                partner=site.partner if site else None,
                parameters=size,
                like=like.get(expert),
                from_round=since.get(expert, 0),
                trained_round=trained[expert],
                tokens=routed.get(expert, Counter()).total(),
                routed=dict(routed.get(expert, {})),
            )
        )
    return ExpertsView(
        charter_version=charter.version,
        run=run.run if run else "",
        experts=tuple(experts),
        retired=charter.retired,
    )


def _updates(run: RunState | None) -> Iterator[tuple[int, UpdateNote]]:
    """Every update that is in a state, with the round whose state it is in."""
    for found in run.history if run else ():
        if found.closed_ms is None:
            return
        yield from ((found.number, admitted.update) for admitted in found.admitted.values())
        assert run is not None
        for site, number in found.takes.items():
            yield found.number, run.history[number - 1].late[site].update
