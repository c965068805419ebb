"""Features that change how votes are held. What is open already is voted by the rules it opened under."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from commons.charter import Charter
from commons.features.feature import Feature, Patch, appended, replaced
from commons.section import WHOLE, Name, Section
from commons.voting import Bound, Power, Rule, Seconds


class Dormancy(Section):
    on: bool


class Officers(Section):
    names: Annotated[tuple[Name, ...], Field(max_length=16)]
    pause_s: Seconds = 0
    """How long their pause lasts if the members do not vote for it."""


class Bounds(Section):
    bounds: Annotated[tuple[Bound, ...], Field(max_length=32)]


def _whole(section: Section) -> Any:
    return section.model_dump(mode="json", context=WHOLE)


def _rule(charter: Charter, rule: Rule) -> Patch:
    """Replaces the rule of that type; one that is not there yet is added."""
    for at, known in enumerate(charter.voting.rules):
        if known.type == rule.type:
            return [replaced(f"/voting/rules/{at}", _whole(rule))]
    return [appended("/voting/rules", _whole(rule))]


def _rules(key: str, title: str, parameters: type[Section], paths: tuple[str, ...], patch: Any) -> Feature:
    return Feature(key, title, parameters, paths, patch, type="rules.change", switch=False)


RULES = (
    _rules(
        "voting-rule",
        "Set what proposals of one type need: quorum, majorities, delay, window, queue",
        Rule,
        ("/voting/rules",),
        _rule,
    ),
    _rules(
        "voting-power",
        "Weigh ballots equally or by contribution; no group of affiliates has more than a third",
        Power,
        ("/voting/power",),
        lambda _, power: [replaced("/voting/power", _whole(power))],
    ),
    _rules(
        "dormancy",
        "Whether quorums wait for members that missed three votes in a row",
        Dormancy,
        ("/voting/dormancy",),
        lambda _, wish: [replaced("/voting/dormancy", wish.on)],
    ),
    _rules(
        "officers",
        "Name the safety officers, who may veto and pause, and how long a pause lasts unless it is voted for",
        Officers,
        ("/voting/officers", "/voting/pause_s"),
        lambda _, wish: [
            replaced("/voting/officers", list(wish.names)),
            replaced("/voting/pause_s", wish.pause_s),
        ],
    ),
    _rules(
        "optimistic-bounds",
        "Values that may move within bounds unless a third of the weight objects",
        Bounds,
        ("/voting/optimistic",),
        lambda _, wish: [replaced("/voting/optimistic", _whole(wish)["bounds"])],
    ),
)
