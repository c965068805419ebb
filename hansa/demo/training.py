"""The run as its members live it: started by the operator, watched by one member, changed by a vote of all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from commons.charter import Charter
from commons.errors import HansaError, Refused, Unreachable
from commons.names import RunId
from commons.views import ProposalsView, ProposalView, RunView
from hansa.chamber import Chamber
from hansa.demo import cast
from hansa.demo.stage import Stage
from hansa.hosting import operator_seat
from hansa.screen import Screen
from hansa.signing import member_key
from hansa.voting import cast as cast_ballot
from hansa.voting import propose
from hansa.watching import ENDED

RUN = RunId("first")
LOOK_S = 0.2


def train(stage: Stage, charter: Charter, screen: Screen, beside: Callable[[], str]) -> RunView:
    """Start the run (or find it going on), vote in round 1, watch to the end; its last view.

    `beside` is called at every look: it raises when a process has died and tells of what else goes on.
    """
    _start(stage, screen)
    teller = _Teller(screen)
    with Chamber.at(stage.seat(cast.PROPOSER)) as chamber:
        watcher = _Watcher(chamber)
        while (view := watcher.latest) is None or view.phase not in ENDED:
            screen.aside(beside())
            if view is not None:
                screen.show(view, charter.rate_card.currency)
                teller.tell(view)
                if view.round >= 1 and not teller.voted:
                    teller.voted = vote(stage, chamber, screen)
            time.sleep(LOOK_S)
        screen.show(view, charter.rate_card.currency)
        teller.tell(view)
    if view.phase == "stopped" or not view.evaluation:
        raise HansaError(f"the run ended early: {view.reason or view.phase}")
    return view


def _start(stage: Stage, screen: Screen) -> None:
    with Chamber.at(operator_seat(stage.home)) as operator:
        try:
            view = operator.read(RunView, RUN)
            screen.event(f"The run goes on: {view.phase}, round {view.round}/{view.rounds}")
        except Refused:
            operator.start_run(stage.seed_model, RUN)
            screen.event("The operator started the run; sites verify charter and votes before they train")


def vote(stage: Stage, chamber: Chamber, screen: Screen) -> bool:
    """The proposal and everybody's ballot; what an interrupted demo already did is not done again."""
    proposals = chamber.read(ProposalsView).proposals
    if proposals:
        view = chamber.read(ProposalView, proposals[0].id)
    else:
        view = propose(
            chamber, member_key(stage.seat(cast.PROPOSER), None), feature=cast.FEATURE, parameters=cast.PARAMETERS,
            title=cast.TITLE, effective_round=stage.script.effective_round,
        )  # fmt: skip
        screen.event(
            f"{cast.PROPOSER} proposes P-{view.number:04d}: {view.title}, from round {view.effective_round}"
        )
    voted = {ballot.voter for ballot in view.ballots}
    for member, choice in cast.VOTES.items():
        if member not in voted and view.state == "active":
            with Chamber.at(stage.seat(member)) as own:
                view = cast_ballot(own, member_key(stage.seat(member), None), view, choice)
    screen.event(
        f"All have voted on P-{view.number:04d}: {view.for_weight} for, {view.against_weight} against; it is {view.state}"
    )
    return True


class _Watcher:
    """Keeps the newest view of the run, from a thread, also over a coordinator's restart."""

    def __init__(self, chamber: Chamber) -> None:
        self.latest: RunView | None = None
        self._chamber = chamber
        threading.Thread(target=self._follow, name="watch", daemon=True).start()

    def _follow(self) -> None:
        while self.latest is None or self.latest.phase not in ENDED:
            try:
                for view in self._chamber.watch(RunView, RUN):
                    self.latest = view
            except Unreachable:
                time.sleep(1)
            except (HansaError, ValueError):
                return  # the channel was closed: nobody watches any more


class _Teller:
    """Says once what a view shows for the first time: a new charter, a site left out."""

    def __init__(self, screen: Screen) -> None:
        self.voted = False
        self._screen = screen
        self._version = 1
        self._told: set[str] = set()

    def tell(self, view: RunView) -> None:
        for opened in view.history:
            if opened.charter_version > self._version:
                self._version = opened.charter_version
                self._screen.event(
                    f"round {opened.round} runs under charter version {opened.charter_version}: updates are sent as "
                    f"{opened.uplink_trunk} (trunk) and {opened.uplink_expert} (experts)"
                )
            for site, why in {**opened.left_out, **opened.rejected}.items():
                if why not in self._told:
                    self._told.add(why)
                    self._screen.event(f"round {opened.round} goes on without {site}: {why}")
