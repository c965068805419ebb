"""What an audit finds: which rule is broken, by which record first, and what its reader should do."""

from __future__ import annotations

from dataclasses import dataclass, replace

from commons.words import Word


class Rule(Word):
    """What a journal promises. One finding for each rule that is broken, at the first record that breaks it."""

    TREE = "tree"
    CHECKPOINT = "checkpoint"
    TILES = "tiles"
    FORM = "form"
    FOUNDING = "founding"
    SIGNATURE = "signature"
    CHARTER = "charter"
    VOTE = "vote"
    TALLY = "tally"
    RUN = "run"
    ROUND = "round"
    UPDATE = "update"
    VERDICT = "verdict"
    USAGE = "usage"
    TRANSFER = "transfer"
    GRANT = "grant"
    HOLD = "hold"
    OVERDRAFT = "overdraft"
    ENDING = "ending"
    CHARGE = "charge"
    CONTRIBUTION = "contribution"
    BREAKAGE = "breakage"
    CORRECTION = "correction"
    DISPUTE = "dispute"
    CONVERSION = "conversion"
    PERIOD = "period"


_EVIDENCE = "the log key signed this, so keep the journal and its checkpoint as evidence"
_STOP = f"{_EVIDENCE} and stop working with this coordinator until its operator has explained it"

ACTS: dict[Rule, str] = {
    Rule.TREE: "stop the coordinator, keep this copy as evidence and restore a backup",
    Rule.CHECKPOINT: _STOP,
    Rule.TILES: "keep the folder as evidence, publish into an empty one and compare the two",
    Rule.FORM: "update Hansa, as a newer version may have written it; if this is the newest, " + _EVIDENCE,
    Rule.FOUNDING: "compare with the charter and the notes that the founders hold; " + _STOP,
    Rule.SIGNATURE: "ask whom it claims to be from; if they did not sign it, " + _STOP,
    Rule.CHARTER: "no site trains under this charter: " + _STOP,
    Rule.VOTE: "the members vote again; " + _EVIDENCE,
    Rule.TALLY: "the members recount with their receipts; " + _STOP,
    Rule.RUN: _STOP,
    Rule.ROUND: _STOP,
    Rule.UPDATE: "the site compares with what it sent and was told; " + _EVIDENCE,
    Rule.VERDICT: "the sites recount it from their measurements; " + _STOP,
    Rule.USAGE: "the site compares with its own copies; its payer disputes the charge",
    Rule.TRANSFER: "no statement may rest on it: " + _STOP,
    Rule.GRANT: "compare with the charter in force then; the members correct it by a vote",
    Rule.HOLD: "its payer disputes what was charged on it; " + _EVIDENCE,
    Rule.OVERDRAFT: "the operator reverses what the budget could not pay; " + _EVIDENCE,
    Rule.ENDING: "the payer's budget is not what it should be: " + _STOP,
    Rule.CHARGE: "its payer disputes it, the operator reverses what is wrong",
    Rule.CONTRIBUTION: "voting power by contribution is wrong from here on: the members put it right by a vote",
    Rule.BREAKAGE: "its partner asks the members to grant again what was lost",
    Rule.CORRECTION: "both partners of the charge compare it with their statements; " + _EVIDENCE,
    Rule.DISPUTE: "both parties of the dispute compare with what they signed; " + _EVIDENCE,
    Rule.CONVERSION: "its partner compares with what it signed and with the rate card; " + _EVIDENCE,
    Rule.PERIOD: "no statement of this period may be trusted: partners dispute theirs",
}


@dataclass(frozen=True)
class Finding:
    rule: Rule
    index: int
    """The first record that breaks the rule."""
    what: str
    act: str
    further: int = 0
    """How many later times the rule is broken."""

    def __str__(self) -> str:
        more = f" ({self.further} more like it follow)" if self.further else ""
        return f"{self.what}{more}: {self.act}"


class Findings:
    """Collects; keeps the first of each rule and counts the rest, so that one cause does not fill the report."""

    def __init__(self) -> None:
        self._first: dict[Rule, Finding] = {}

    def add(self, rule: Rule, index: int, what: str) -> None:
        """`what` says what is wrong with the record, without its index."""
        self.put(Finding(rule, index, f"record {index} {what}", ACTS[rule]))

    def put(self, found: Finding) -> None:
        rule, index = found.rule, found.index
        before = self._first.get(rule)
        if before is None:
            self._first[rule] = found
        elif index < before.index:
            self._first[rule] = replace(found, further=before.further + 1)
        else:
            self._first[rule] = replace(before, further=before.further + 1)

    def require(self, holds: bool, rule: Rule, index: int, what: str) -> bool:
        """A finding unless it `holds`; whether it does."""
        if not holds:
            self.add(rule, index, what)
        return holds

    def all(self) -> tuple[Finding, ...]:
        """By index, then in the order of the rules."""
        order = list(Rule)
        return tuple(sorted(self._first.values(), key=lambda f: (f.index, order.index(f.rule))))
