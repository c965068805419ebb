"""The auditor's reading of states that were re-made: between two rounds, for a vote that changed the experts, and from the last.

That the bytes follow from the old state is computed again where the old state is at hand: a coordinator removes it at
once, so that what was retired is gone, and whoever wants to audit the change keeps a copy from before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from commons import charter_file
from commons.charter import Charter
from commons.errors import StoreError
from commons.experts.remaking import Change, remade_digest
from commons.names import Digest
from commons.states import StateStore
from governance.fsck_findings import Findings, Rule
from governance.fsck_late import Run
from governance.fsck_votes import Votes


def take_remade(findings: Findings, index: int, run: Run, facts: Mapping[str, Any], charter: Charter) -> None:
    """`charter` is the one in force."""
    need, rule = findings.require, Rule.ROUND
    need(run.round is None, rule, index, "re-makes the state in the middle of a round")
    need(facts["round"] == run.closed + 1, rule, index, f"re-makes the state for round {facts['round']}")
    from_last = (facts["base"], facts["momentum_base"]) == (run.state, run.momentum)
    need(from_last, rule, index, "re-makes another state than the run's last one")
    need(
        facts["since"] == run.experts_of.version, rule, index, "re-makes a state of other experts than it had"
    )
    ours = (facts["charter_version"], facts["charter"]) == (charter.version, charter_file.digest(charter))
    need(ours, rule, index, "re-makes the state for another charter than the one in force")
    changed = _slices_of(run.experts_of) != _slices_of(charter)
    need(changed, rule, index, "re-makes the state although no vote changed its experts")
    kept = bool(facts["momentum"]) == bool(facts["momentum_base"])
    need(kept, rule, index, "drops or invents what was remembered beside the state")
    run.state, run.momentum, run.experts_of = facts["state"], facts["momentum"], charter
    run.licences[facts["state"], run.closed] = charter.release.licence


def check_opened(findings: Findings, index: int, run: Run, number: int, charter: Charter) -> None:
    """A round trains the experts that its charter names."""
    ours = _slices_of(run.experts_of) == _slices_of(charter)
    what = f"opens round {number} on a state with other experts than charter version {charter.version} names"
    findings.require(ours, Rule.ROUND, index, what)


def _slices_of(charter: Charter) -> tuple[object, ...]:
    """What of a charter a vote may change that says which slices a state has."""
    return charter.owners, charter.model.reader, charter.model.own_from


class Remade:
    """Computes re-made states again whose old state is in `store`."""

    def __init__(self, findings: Findings, votes: Votes, store: StateStore | None) -> None:
        self._findings, self._votes, self._store = findings, votes, store
        self.computed = 0

    def take(self, index: int, facts: Mapping[str, Any]) -> None:
        if self._store is None or not self._store.has(Digest(facts["base"])):
            return
        versions = range(facts["since"], facts["charter_version"] + 1)
        change = Change.through([self._votes.version(version) for version in versions])
        try:
            state = remade_digest(self._store, Digest(facts["base"]), change)
        except StoreError:
            return  # a part of it is missing: nothing can be said
        self.computed += 1
        what = f"re-makes the state as {facts['state'][:23]}, computed again it is {state[:23]}"
        self._findings.require(state == facts["state"], Rule.ROUND, index, what)
