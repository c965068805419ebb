"""The live table: a run as `commons.views.RunView`, from the journal's view and the sites' heartbeats."""

from __future__ import annotations

from collections.abc import Mapping

from commons.charter import Charter
from commons.charter import Site as CharterSite
from commons.names import SiteId
from commons.privacy.terms import DP
from commons.views import RoundView, RunView, SiteView
from governance.ledger import Ledger
from governance.noised import Noised
from orchestrator.late import words
from orchestrator.live import WORKING, Live
from orchestrator.progress import RoundState, RunState

STATES = WORKING | {"idle", "admitted", "refused"}
"""What a site may say of itself."""


def run_view(
    run: RunState,
    *,
    charters: Mapping[int, Charter],
    ledger: Ledger,
    live: Live,
    noised: Noised,
    journal_size: int,
    last: int = 0,
) -> RunView:
    """Call it while the journal's views stand still. `last`: how many rounds its history shows; 0: all."""
    charter = charters[max(charters)]
    opened, private = run.open_round, charter.privacy
    sites = [_site(site, run, charters, ledger, live) for site in charter.sites]
    if private.mode == "dp":
        sites = [_with_epsilon(site, private.dp, noised) for site in sites]
    return RunView(
        run=run.run,
        phase=run.phase,
        round=opened.number if opened else run.closed,
        rounds=run.rounds,
        charter_version=charter.version if run.finished is None else run.charter_version,
        state=run.state,
        reason=run.reason or live.trouble,
        sites=tuple(sites),
        history=tuple(
            round_view(run, found, charters[found.charter_version]) for found in run.history[-last:]
        ),
        evaluation={note.domain: note.loss for _, (_, note) in sorted(run.evaluations.items())},
        journal_size=journal_size,
    )


def round_view(run: RunState, found: RoundState, charter: Charter) -> RoundView:
    updates = {site: admitted.update for site, admitted in sorted(found.admitted.items())}
    codecs = charter.learning.codecs_in(found.number)
    takes = run.late if found is run.open_round else found.takes
    late = {site: run.history[of - 1].late[site].update for site, of in sorted(takes.items())}
    return RoundView(
        round=found.number,
        charter_version=found.charter_version,
        base=found.base,
        state=found.state,
        contributors=tuple(updates) if found.state else (),
        missing=found.missing,
        carried=found.carried,
        late={site: words(found.number - takes[site], charter) for site in late},
        left_out={site: why.message for site, why in sorted(found.left_out.items())},
        rejected={site: why.message for site, why in sorted(found.rejected.items())},
        losses={s: u.loss for s, u in updates.items() if u.loss is not None},
        held_out={s: u.held_out_loss for s, u in updates.items() if u.held_out_loss is not None},
        probe_loss=found.probe_loss,
        probe_change_ppm=found.change_ppm,
        verdict=found.verdict,
        worth_ppm=found.worth_ppm,
        experts_ppm=found.experts_ppm,
        tokens=sum(update.tokens for update in (*updates.values(), *late.values())),
        bytes_up=sum(update.payload_bytes for update in (*updates.values(), *late.values())),
        bytes_down=found.bytes_down,
        opened_ms=found.opened_ms,
        closed_ms=found.closed_ms,
        uplink_trunk=codecs.trunk,
        uplink_expert=codecs.expert,
    )


def _site(
    site: CharterSite, run: RunState, charters: Mapping[int, Charter], ledger: Ledger, live: Live
) -> SiteView:
    name = SiteId(site.name)
    presence = live.of(name)
    beat = presence.beat
    last = next((found for r in reversed(run.history) if (found := r.update(name))), None)
    update = last.update if last else None
    usage = last.usage if last else None
    state, why = _state(name, run, charters, live)
    return SiteView(
        site=site.name,
        partner=site.partner,
        payer=site.payer,
        domain=site.domain,
        state=state,
        why=why,
        step=beat.steps if state == "admitted" else beat.step,
        steps=beat.steps,
        tokens_per_s=beat.tokens_per_s if state == "training" else 0.0,
        loss=beat.loss if beat.loss is not None else (update.loss if update else None),
        held_out_loss=update.held_out_loss if update else None,
        update_norm=live.norm(name),
        bytes_up=beat.bytes_up,
        bytes_down=beat.bytes_down,
        model_bytes=beat.model_bytes,
        spend_left_micro=ledger.available_micro(site.payer),
        gflop=usage.gflop if usage else 0,
        device_ms=usage.device_ms if usage else 0,
    )


def _with_epsilon(site: SiteView, terms: DP, noised: Noised) -> SiteView:
    spent = noised.spent(SiteId(site.site), terms)
    return site.model_copy(update={"epsilon": spent, "epsilon_max": terms.epsilon_max})


def _state(site: SiteId, run: RunState, charters: Mapping[int, Charter], live: Live) -> tuple[str, str]:
    """State and why: what the journal says of the site's part first, then what the site says itself."""
    presence, opened = live.of(site), run.open_round
    beat = presence.beat
    if (number := run.carried.get(site)) is not None and beat.state in WORKING and presence.stream:
        taking = charters[opened.charter_version if opened else max(charters)]
        late = words(run.next - number, taking)
        return beat.state, f"round {number} closed without it; its update counts in round {run.next}, {late}"
    if opened and site in opened.left_out:
        why = opened.left_out[site].message
        return ("left out" if presence.stream else "offline"), why
    if opened and site in opened.admitted and presence.stream:
        others = ", ".join(opened.waiting)
        measuring = beat.why if beat.state in WORKING and not others else ""
        return "admitted", f"waiting for {others}" if others else measuring or "combining"
    if opened and site in opened.rejected:
        return "refused", opened.rejected[site].message
    if not presence.stream:
        return "offline", f"site {site} is not connected; its operator starts it"
    if live.is_silent(site):
        return "gone", f"site {site} has not been heard of for a while"
    if run.finished:
        return "idle", run.reason
    if beat.state == "refused":
        return "refused", beat.why
    return beat.state, beat.why
