"""How training looks in MLflow: one parent run per run, one child per partner, step = round.

Pure: folds records into items. Metrics of a partner with several sites end in ``/<site>``. The steps of
``eval/*`` count the rounds a state went through: the base of round 1 is state 0, the seed model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from commons import charter_file, notes
from commons.charter import Charter, Site
from commons.names import SiteId
from commons.records import Kind, Record
from commons.work import EvaluationNote, ProbeNote, UpdateNote, UsageNote, routed_tokens
from governance.ledger import Ledger
from governance.noised import Noised
from governance.tracking.about_run import about, parameters
from governance.tracking.items import End, File, Item, Log, Point, Start, Status


@dataclass
class _Round:
    opened_ms: int
    closed: bool = False
    held_out: dict[str, float] = field(default_factory=dict)
    """site -> held-out loss of the base state"""
    losses: list[tuple[float, int]] = field(default_factory=list)
    """(training loss, tokens)"""
    holds: list[str] = field(default_factory=list)
    routed: Counter[str] = field(default_factory=Counter)
    """Expert -> tokens, of the sites that said."""


@dataclass
class _Run:
    name: str
    state_number: dict[str, int]
    """Digest of a state -> rounds it went through."""
    rounds: dict[int, _Round] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    partners: list[str] = field(default_factory=list)
    probed: dict[str, dict[str, float]] = field(default_factory=dict)
    """State -> site -> loss on the probe."""
    charted: str = ""
    """State whose probe loss is the curve's last point."""


class Training:
    def __init__(self) -> None:
        self._charter: Charter | None = None
        self.ledger = Ledger()
        self._noised = Noised()
        self._runs: dict[str, _Run] = {}
        self._active: _Run | None = None
        self._change = ""

    def apply(self, index: int, record: Record) -> list[Item]:
        self.ledger.apply(index, record)
        self._noised.apply(record)
        match record.kind:
            case Kind.CHARTER:
                return self._charter_changed(record)
            case Kind.EXECUTION:
                self._change = f"P-{record.facts['number']:04d}"
                return []
            case Kind.RUN:
                return self._open(index, record)
            case Kind.ROUND:
                return self._open_round(record)
            case Kind.UPDATE:
                return self._update(record)
            case Kind.USAGE:
                return self._usage(record)
            case Kind.REJECTION:
                return self._rejection(record)
            case Kind.TRANSFER:
                return self._transfer(record)
            case Kind.PROBE:
                return self._probe(record)
            case Kind.VERDICT:
                return self._verdict(record)
            case Kind.WORTH:
                return self._worth(record)
            case Kind.CLOSE:
                return self._close(record)
            case Kind.REMADE:
                facts, number = record.facts, self._runs[record.facts["run"]].state_number
                number[facts["state"]] = number[facts["base"]]
                return []
            case Kind.EVALUATION:
                return self._evaluation(record)
            case Kind.FINISH:
                return self._finish(record)
            case _:
                return []

    def _charter_changed(self, record: Record) -> list[Item]:
        charter = charter_file.from_canonical(record.body)
        self._charter = charter
        if self._active is None:
            return []
        parent = _parent(self._active.name)
        why = {f"hansa.charter.{charter.version}": self._change} if self._change else {}
        return [Log(parent, tags=why), File(parent, f"charter/{charter.version}.json", record.body.decode())]

    def _open(self, index: int, record: Record) -> list[Item]:
        facts, charter = record.facts, self._in_force()
        run = _Run(facts["run"], {facts["state"]: 0})
        self._runs[run.name] = self._active = run
        tags = {
            "hansa.consortium": charter.consortium.name,
            "hansa.run": run.name,
            "hansa.role": "coordinator",
            "hansa.charter.version": str(charter.version),
            "hansa.charter.digest": charter_file.digest(charter),
            "hansa.expert_map": facts["expert_map"],
            "hansa.seed_state": facts["state"],
            "hansa.log.key": charter.consortium.log_key,
            "hansa.log.index": str(index),
            "mlflow.note.content": about(run.name, charter),
        }
        parent = _parent(run.name)
        text = charter_file.canonical(charter).decode()
        items: list[Item] = [
            Start(parent, "training", f"run {run.name}", record.at_ms, tags=tags, page="rounds"),
            Log(parent, params=parameters(charter, facts["rounds"])),
            File(parent, f"charter/{charter.version}.json", text),
        ]
        for member in charter.members:
            items += self._child(run, member.name, record.at_ms)
        return items

    def _child(self, run: _Run, partner: str, at_ms: int) -> list[Item]:
        if partner in run.partners:
            return []
        run.partners.append(partner)
        charter = self._in_force()
        tags = {
            "hansa.consortium": charter.consortium.name,
            "hansa.run": run.name,
            "hansa.role": "partner",
            "hansa.partner": partner,
            "hansa.sites": " ".join(s.name for s in charter.sites if s.partner == partner),
            "hansa.pays_for": " ".join(s.name for s in charter.sites if s.payer == partner),
            "hansa.experts": " ".join(e for s in charter.sites if s.partner == partner for e in s.experts),
        }
        return [Start(_child_of(run.name, partner), "training", partner, at_ms, _parent(run.name), tags)]

    def _open_round(self, record: Record) -> list[Item]:
        facts = record.facts
        run = self._runs[facts["run"]]
        run.rounds.setdefault(facts["round"], _Round(record.at_ms))
        version = Point("charter/version", facts["charter_version"], facts["round"], record.at_ms)
        items: list[Item] = [Log(_parent(run.name), (version,))]
        for member in self._in_force().members:
            items += self._child(run, member.name, record.at_ms)
        return items

    def _update(self, record: Record) -> list[Item]:
        update = UpdateNote.from_note(notes.parse(record.body))
        site, found = self._site(update.site), self._runs[update.run].rounds[update.round]
        values: dict[str, float] = {
            "train/steps": update.steps,
            "train/tokens": update.tokens,
            "comm/bytes_up": update.payload_bytes,
        }
        values |= self._epsilon(site)
        found.routed.update(routed_tokens(update.routed))
        if update.loss is not None:
            values["train/loss"] = update.loss
            found.losses.append((update.loss, update.tokens))
        items: list[Item] = [self._log(update.run, site, values, update.round, record.at_ms)]
        if update.held_out_loss is not None:
            found.held_out[site.name] = update.held_out_loss
            items += self._held_out(update.run, site, update.held_out_loss, update.round - 1, record.at_ms)
        return items

    def _rejection(self, record: Record) -> list[Item]:
        facts = record.facts
        run, number = facts["run"], facts["round"]
        tag = {f"hansa.rejected.{number}.{facts['site']}": f"{facts['code']}: {facts['message']}"}
        items: list[Item] = [Log(_parent(run), tags=tag)]
        if facts["update"] and (spent := self._epsilon(self._site(facts["site"]))):
            items.append(self._log(run, self._site(facts["site"]), spent, number, record.at_ms))
        return items

    def _epsilon(self, site: Site) -> dict[str, float]:
        """What the site has spent, where updates are noised: one that was rejected has left it all the same."""
        privacy = self._in_force().privacy
        if privacy.mode != "dp":
            return {}
        return {"privacy/epsilon": self._noised.spent(SiteId(site.name), privacy.dp)}

    def _usage(self, record: Record) -> list[Item]:
        usage = UsageNote.from_note(notes.parse(record.body))
        hours = usage.device_ms / 3_600_000
        values = {
            "usage/device_ms": usage.device_ms,
            "usage/gflop": usage.gflop,
            "charge/device_hours": hours,
        }
        return [self._log(usage.run, self._site(usage.site), values, usage.round, record.at_ms)]

    def _transfer(self, record: Record) -> list[Item]:
        facts = record.facts
        run = self._runs.get(facts.get("run", ""))
        if run is None:
            return []
        found = run.rounds.setdefault(facts["round"], _Round(record.at_ms))
        if facts["type"] == "hold":
            found.holds.append(facts["id"])
            return []
        if facts["type"] not in ("settle", "release", "expire"):
            return []
        return self._money(run, facts["round"], record.at_ms)

    def _money(self, run: _Run, number: int, at_ms: int) -> list[Item]:
        """Charges and budgets of a round, once it is closed and all its holds have ended."""
        found = run.rounds[number]
        holds = [hold for i in found.holds if (hold := self.ledger.hold(i)) is not None]
        if not found.closed or any(hold.state == "held" for hold in holds):
            return []
        spent: dict[str, int] = {}
        for hold in holds:
            spent[hold.request.payer] = spent.get(hold.request.payer, 0) + hold.charged_micro
        currency = self._in_force().rate_card.currency.lower()
        total = sum(spent.values())
        values = {"charge/micro": total, f"charge/{currency}": total / 1e6}
        items: list[Item] = [Log(_parent(run.name), _points(values, number, at_ms))]
        for budget in self.ledger.budgets():
            items += self._child(run, budget.partner, at_ms)
            values = {
                "charge/micro": spent.get(budget.partner, 0),
                f"charge/{currency}": spent.get(budget.partner, 0) / 1e6,
                "budget/remaining": budget.available_micro / 1e6,
                "budget/available_micro": budget.available_micro,
                "budget/contributed_micro": budget.contributed_micro,
            }
            items.append(Log(_child_of(run.name, budget.partner), _points(values, number, at_ms)))
        return items

    def _close(self, record: Record) -> list[Item]:
        facts = record.facts
        run, number = self._runs[facts["run"]], facts["round"]
        found = run.rounds[number]
        found.closed = True
        run.state_number[facts["state"]] = number
        values: dict[str, float] = {
            "comm/bytes_up": facts["bytes_up"],
            "comm/bytes_down": facts["bytes_down"],
            "round/contributors": len(facts["contributors"]),
            "round/missing": len(facts["missing"]),
            "round/seconds": (record.at_ms - found.opened_ms) / 1000,
        }
        if late := facts.get("late"):
            values["round/late"] = len(late)
        tokens = sum(t for _, t in found.losses)
        if tokens:
            values["train/loss"] = sum(loss * t for loss, t in found.losses) / tokens
        items: list[Item] = [Log(_parent(run.name), _points(values, number, record.at_ms))]
        items += _macro(run.name, found.held_out, number - 1, record.at_ms)
        items += self._loads(run.name, found.routed, number, record.at_ms)
        return items + self._money(run, number, record.at_ms)

    def _loads(self, run: str, routed: Counter[str], number: int, at_ms: int) -> list[Item]:
        """Each expert's tokens over the mean of all (1: all alike), on its owner's run."""
        charter, total = self._in_force(), routed.total()
        if not total:
            return []
        owned = [(e, s) for s in charter.sites for e in s.experts]
        return [
            Log(
                _child_of(run, site.partner),
                (Point(f"expert/{e}/load", routed[e] * len(charter.experts) / total, number, at_ms),),
            )
            for e, site in owned
        ]

    def _evaluation(self, record: Record) -> list[Item]:
        said = EvaluationNote.from_note(notes.parse(record.body))
        run = self._runs[said.run]
        run.evaluation[said.site] = said.loss
        return self._held_out(
            said.run, self._site(said.site), said.loss, run.state_number[said.state], record.at_ms
        )

    def _probe(self, record: Record) -> list[Item]:
        said = ProbeNote.from_note(notes.parse(record.body))
        self._runs[said.run].probed.setdefault(said.state, {})[said.site] = said.loss
        return []

    def _verdict(self, record: Record) -> list[Item]:
        """Of the base and of the state that was measured; one that was not taken is a tag and no point of the curve."""
        facts = record.facts
        run, number = self._runs[facts["run"]], facts["round"]
        said = facts["verdict"] if facts["change_ppm"] is None else _changed(facts)
        items: list[Item] = [Log(_parent(run.name), tags={f"hansa.verdict.{number}": said})]
        taken = facts["verdict"] in ("good", "measured")
        for state, step in ((facts["base"], number - 1), (facts["state"], number)):
            losses = sorted(run.probed.get(state, {}).values())
            if losses and state != run.charted and (taken or state == facts["base"]):
                run.charted = state
                point = Point("probe/loss", losses[(len(losses) - 1) // 2], step, record.at_ms)
                items.append(Log(_parent(run.name), (point,)))
        if facts["change_ppm"] is not None:
            change = Point("probe/change_percent", facts["change_ppm"] / 10_000, number, record.at_ms)
            items.append(Log(_parent(run.name), (change,)))
        if facts["verdict"] != "harmful":
            run.probed = {s: by for s, by in run.probed.items() if s in (facts["base"], facts["state"])}
        return items

    def _worth(self, record: Record) -> list[Item]:
        """Each update on its partner's run, each expert on its owner's."""
        facts, items = record.facts, list[Item]()
        run, number = facts["run"], facts["round"]
        for name, (_, ppm, _) in facts["updates"].items():
            site, _, of = name.rpartition("/")
            key = "worth/update_percent" if int(of) == number else "worth/late_update_percent"
            items.append(self._log(run, self._site(site), {key: ppm / 10_000}, number, record.at_ms))
        owners = {e: s for s in self._in_force().sites for e in s.experts}
        for expert, (_, ppm, _) in facts["experts"].items():
            point = Point(f"worth/expert/{expert}_percent", ppm / 10_000, number, record.at_ms)
            items.append(Log(_child_of(run, owners[expert].partner), (point,)))
        return items

    def _finish(self, record: Record) -> list[Item]:
        facts = record.facts
        run = self._runs[facts["run"]]
        status: Status = "FINISHED" if facts["phase"] == "finished" else "KILLED"
        items = _macro(run.name, run.evaluation, run.state_number[facts["state"]], record.at_ms)
        tags = {"hansa.phase": facts["phase"], "hansa.reason": facts["reason"], "hansa.state": facts["state"]}
        items.append(Log(_parent(run.name), tags=tags))
        for number, found in run.rounds.items():
            if not found.closed:  # stopped in the middle: what was delivered was paid
                found.closed = True
                items += self._money(run, number, record.at_ms)
        items += [End(_child_of(run.name, p), status, record.at_ms) for p in run.partners]
        self._active = None
        return [*items, End(_parent(run.name), status, record.at_ms)]

    def _held_out(self, run: str, site: Site, loss: float, step: int, at_ms: int) -> list[Item]:
        domain = Point(f"eval/{site.domain}", loss, step, at_ms)
        return [self._log(run, site, {"eval/held_out_loss": loss}, step, at_ms), Log(_parent(run), (domain,))]

    def _log(self, run: str, site: Site, values: dict[str, Any], step: int, at_ms: int) -> Log:
        several = sum(s.partner == site.partner for s in self._in_force().sites) > 1
        named = {f"{key}/{site.name}" if several else key: value for key, value in values.items()}
        return Log(_child_of(run, site.partner), _points(named, step, at_ms))

    def _site(self, name: str) -> Site:
        site = self._in_force().site(name)
        assert site is not None, f"the journal took a note of {name}, which is not in the charter"
        return site

    def _in_force(self) -> Charter:
        assert self._charter is not None, "a run before the consortium was founded"
        return self._charter


def _changed(facts: Mapping[str, Any]) -> str:
    most = "" if facts["limit_ppm"] is None else f", harm above {facts['limit_ppm'] / 10_000:+.2f} %"
    return f"{facts['verdict']}: {facts['change_ppm'] / 10_000:+.2f} % on the probe{most}"


def _parent(run: str) -> str:
    return f"run/{run}"


def _child_of(run: str, partner: str) -> str:
    return f"run/{run}/partner/{partner}"


def _points(values: dict[str, Any], step: int, at_ms: int) -> tuple[Point, ...]:
    return tuple(Point(key, value, step, at_ms) for key, value in values.items())


def _macro(run: str, losses: dict[str, float], step: int, at_ms: int) -> list[Item]:
    """Mean over sites, each counting the same."""
    if not losses:
        return []
    return [
        Log(_parent(run), (Point("eval/held_out_loss", sum(losses.values()) / len(losses), step, at_ms),))
    ]
