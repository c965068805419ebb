"""The auditor's reading of states that were re-made: between two rounds, for a vote that changed the experts, and from the last.

That the bytes follow from the old state whoever holds both recomputes (`commons.experts.remaking`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from commons import charter_file
from commons.charter import Charter
from governance.fsck_findings import Findings, Rule
from governance.fsck_late import Run


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
    changed = run.experts_of.owners != charter.owners
    need(changed, rule, index, "re-makes the state although no vote changed its experts")
    kept = bool(facts["momentum"]) == bool(facts["momentum_base"])
    need(kept, rule, index, "drops or invents what was remembered beside the state")
    run.state, run.momentum, run.experts_of = facts["state"], facts["momentum"], charter
    run.licences[facts["state"], run.closed] = charter.release.licence


def check_opened(findings: Findings, index: int, run: Run, number: int, charter: Charter) -> None:
    """A round trains the experts that its charter names."""
    ours = run.experts_of.owners == charter.owners
    what = f"opens round {number} on a state with other experts than charter version {charter.version} names"
    findings.require(ours, Rule.ROUND, index, what)
