"""How votes look in MLflow: one run per proposal, a step per ballot, notes and tally as files.

Pure: folds records into items. RUNNING means open or waiting for its round, FINISHED executed, or decided where there is
nothing to carry out, FAILED defeated, stale or failed, KILLED withdrawn.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from commons import features, notes
from commons.ballots import Ballot, Proposal
from commons.lodging import Lodged
from commons.motions import Motion
from commons.opening import Opening
from commons.pledging import Pledge
from commons.records import Kind, Record
from commons.tally import tally
from governance.proposals import label
from governance.tracking.items import End, File, Item, Log, Point, Proof, Start


@dataclass
class _Vote:
    opening: Opening
    binding: bool = True
    ballots: list[tuple[int, int, Ballot]] = field(default_factory=list)
    motions: list[tuple[int, int, Motion]] = field(default_factory=list)
    pledges: list[Pledge] = field(default_factory=list)


class Votes:
    def __init__(self) -> None:
        self._notes: dict[str, tuple[int, Proposal, str]] = {}
        self._votes: dict[str, _Vote] = {}

    def apply(self, index: int, record: Record) -> list[Item]:
        match record.kind:
            case Kind.PROPOSAL:
                proposal = Proposal.from_note(notes.parse(record.body))
                self._notes[proposal.id] = (index, proposal, record.body.decode())
                return []
            case Kind.OPENING:
                return self._open(record)
            case Kind.BALLOT:
                return self._ballot(index, record)
            case Kind.MOTION:
                return self._motion(index, record)
            case Kind.PLEDGE:
                return self._pledge(index, record)
            case Kind.LODGED:
                return self._lodged(index, record)
            case Kind.OUTCOME:
                return self._outcome(index, record)
            case Kind.EXECUTION:
                return self._execution(index, record)
            case _:
                return []

    def _open(self, record: Record) -> list[Item]:
        opening = Opening.from_facts(record.facts)
        index, proposal, note = self._notes.pop(opening.proposal)
        feature = features.FEATURES[proposal.feature]
        self._votes[opening.proposal] = _Vote(opening, feature.binding)
        tags = {
            "hansa.consortium": opening.consortium,
            "proposal.id": opening.proposal,
            "proposal.number": label(opening.number),
            "proposal.title": proposal.title,
            "proposal.type": feature.type,
            "proposal.feature": proposal.feature,
            "proposal.proposer": proposal.proposer,
            "proposal.effective_round": str(proposal.effective_round),
            "proposal.charter": proposal.charter,
            "proposal.rules": opening.rules_digest,
            "proposal.state": "open",
            "hansa.log.index": str(index),
            "mlflow.note.content": _about(proposal, opening),
        }
        run, name = _run(opening.proposal), f"{label(opening.number)} {proposal.title}"
        weights = {f"weight.{member}": str(weight) for member, weight in opening.electorate.items()}
        return [
            Start(
                run, "governance", name, record.at_ms, tags=tags, page=f"proposals/{label(opening.number)}"
            ),
            Log(
                run,
                params={"feature": proposal.feature, "parameters": json.dumps(proposal.parameters)} | weights,
            ),
            File(run, "proposal.note", note),
            Proof(run, "proposal.tlog-proof", index),
        ]

    def _ballot(self, index: int, record: Record) -> list[Item]:
        ballot = Ballot.from_note(notes.parse(record.body))
        vote, run = self._votes[ballot.proposal], _run(ballot.proposal)
        vote.ballots.append((index, record.at_ms, ballot))
        count = tally(vote.opening, vote.ballots, record.at_ms, vote.motions)
        weights = {
            "for": count.for_weight,
            "against": count.against_weight,
            "abstain": count.abstain_weight,
            "turnout": count.turnout_weight,
        }
        step = len(vote.ballots)
        points = tuple(Point(f"votes/{name}", weight, step, record.at_ms) for name, weight in weights.items())
        tag: dict[str, str] = {f"proposal.ballot.{ballot.voter}": ballot.choice}
        return [
            Log(run, points, tags=tag),
            File(run, f"ballots/{ballot.voter}.note", record.body.decode()),
            Proof(run, f"ballots/{ballot.voter}.tlog-proof", index),
        ]

    def _motion(self, index: int, record: Record) -> list[Item]:
        """A vote that is withdrawn ends; a vetoed or paused one may go on."""
        motion = Motion.from_note(notes.parse(record.body))
        vote, run = self._votes[motion.proposal], _run(motion.proposal)
        vote.motions.append((index, record.at_ms, motion))
        tags = {f"proposal.{motion.motion}.{motion.member}": motion.reason}
        items: list[Item] = [Log(run, tags=tags)]
        if motion.motion == "withdraw":
            items += [Log(run, tags={"proposal.state": "cancelled"}), End(run, "KILLED", record.at_ms)]
        return items

    def _pledge(self, index: int, record: Record) -> list[Item]:
        """What was pledged so far, whatever became of it; what is paid stands in the books."""
        pledge = Pledge.from_note(notes.parse(record.body))
        vote, run = self._votes[pledge.proposal], _run(pledge.proposal)
        vote.pledges.append(pledge)
        total, path = sum(p.amount_micro for p in vote.pledges), f"pledges/{pledge.member}-{pledge.tail[:8]}"
        return [
            Log(run, (Point("pledges/micro", total, len(vote.pledges), record.at_ms),)),
            File(run, f"{path}.note", record.body.decode()),
            Proof(run, f"{path}.tlog-proof", index),
        ]

    def _lodged(self, index: int, record: Record) -> list[Item]:
        """Which site keeps whose ballot, of those that were lodged."""
        said = Lodged.from_note(notes.parse(record.body))
        run, path = _run(said.proposal), f"lodged/{said.site}-{said.voter}-{said.ballot[7:15]}"
        return [File(run, f"{path}.note", record.body.decode()), Proof(run, f"{path}.tlog-proof", index)]

    def _outcome(self, index: int, record: Record) -> list[Item]:
        facts = record.facts
        run, state = _run(facts["proposal"]), facts["state"]
        path = state if state in ("stale", "failed") else "tally"
        items: list[Item] = [
            Log(run, tags={"proposal.state": state}),
            File(run, f"{path}.json", _pretty(facts)),
            Proof(run, f"{path}.tlog-proof", index),
        ]
        binding = self._votes[facts["proposal"]].binding
        if state == "ranked" or (state == "passed" and not binding):
            items.append(End(run, "FINISHED", record.at_ms))
        elif state != "passed":
            items.append(End(run, "FAILED", record.at_ms))
        return items

    def _execution(self, index: int, record: Record) -> list[Item]:
        facts = record.facts
        run = _run(facts["proposal"])
        tags = {
            "proposal.state": "executed",
            "proposal.executed_round": str(facts["round"]),
            "proposal.charter_version": str(facts["version"]),
        }
        return [
            Log(run, tags=tags),
            File(run, "execution.json", _pretty(facts)),
            Proof(run, "execution.tlog-proof", index),
            End(run, "FINISHED", record.at_ms),
        ]


def _run(proposal: str) -> str:
    return f"proposal/{proposal}"


def _pretty(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _about(proposal: Proposal, opening: Opening) -> str:
    parameters = json.dumps(proposal.parameters, sort_keys=True, ensure_ascii=False)
    voters = ", ".join(f"{name} ({weight})" for name, weight in sorted(opening.electorate.items()))
    return (
        f"**{label(opening.number)} {proposal.title}**, proposed by {proposal.proposer}\n\n"
        f"Feature `{proposal.feature}` with `{parameters}`, from round {proposal.effective_round} at the earliest.\n\n"
        f"Quorum {opening.quorum_percent} %, passes above {opening.pass_percent} %. Electorate: {voters}."
    )
