"""What a demo found out: `summary.json`, and the card a person reads."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commons.charter import Charter
from commons.experts.map import ExpertMap
from commons.identity import write_file
from commons.views import BudgetView, RunView
from commons.written import duration, size
from hansa.demo.closing import Closed, Released
from hansa.demo.stage import Stage, again
from hansa.output import answer, plain, table
from hansa.statements import budget_table

Facts = dict[str, Any]
FP32 = 4


def gather(
    stage: Stage,
    charter: Charter,
    *,
    released: Released,
    closed: Closed,
    compared: Mapping[str, dict[str, float]],
    seed_losses: Mapping[str, float],
    seconds: float,
    phases: Mapping[str, float],
) -> Facts:
    """Everything, as data. Losses are held-out, nats per byte, on the same windows for every model."""
    run, budgets = closed.run, closed.budgets
    loss: dict[str, Any] = {
        "consortium": released.losses,
        "without_readers": released.plain,
        "measured_by_sites": run.evaluation,
        "seed": dict(seed_losses),
        "alone": {n.removeprefix("alone-"): found for n, found in compared.items() if n.startswith("alone-")},
    }
    if "central" in compared:
        loss["central"] = compared["central"]
    return {
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "phases": dict(phases),
        "seed": stage.seed,
        "sites": len(charter.sites),
        "rounds": len([r for r in run.history if r.closed_ms is not None]),
        "routing": charter.learning.routing,
        "domains": {site.partner: site.domain for site in charter.sites},
        "loss": loss,
        "macro": _macro(loss),
        "bytes": _bytes(charter, closed),
        "memory": _memory(charter, run),
        "currency": budgets.currency,
        "charges": plain(budgets.charges),
        "budgets": plain(budgets.budgets),
        "left_out": [
            {"round": r.round, "site": site, "why": why}
            for r in run.history
            for site, why in r.left_out.items()
        ],
        "proposals": [_proposal(p) for p in plain(closed.proposals)],
        "journal": {"size": closed.journal_size, "root": closed.journal_root, "verified": True},
        "release": {
            "path": str(released.path),
            "valid": not released.problems,
            "problems": released.problems,
        },
        "mlflow": {"tracking_uri": f"sqlite:///{stage.home / 'mlflow.db'}", "complete": closed.mirrored},
        "model_digest": run.state,
        "history": plain(run.history),
    }


def _macro(loss: Mapping[str, Any]) -> dict[str, Any]:
    """Macro averages over the domains, and how far the consortium is from each."""
    ours = _mean(loss["consortium"])
    alone = {partner: _mean(found) for partner, found in loss["alone"].items()}
    macro: dict[str, Any] = {"consortium": ours, "alone": alone}
    if loss["seed"]:
        macro["seed"] = _mean(loss["seed"])
    if alone:
        macro["lower_than_best_alone"] = 1 - ours / min(alone.values())
    if "central" in loss:
        macro["central"] = _mean(loss["central"])
        macro["above_central"] = ours / macro["central"] - 1
    return macro


def _bytes(charter: Charter, closed: Closed) -> dict[str, int]:
    """Moved, and what replicas would have moved: the whole fp32 model up and down per site and round."""
    rounds = [r for r in closed.run.history if r.closed_ms is not None]
    model = _full_model(charter) * FP32
    return {
        "up": sum(r.bytes_up for r in rounds),
        "down": sum(r.bytes_down for r in rounds),
        "full_replication": 2 * model * sum(len(r.contributors) + len(r.late) for r in rounds),
    }


def _full_model(charter: Charter) -> int:
    """Parameters of the model that one place would train: without readers."""
    model = charter.model.shared
    return ExpertMap.from_charter(charter.model_copy(update={"model": model})).parameters().total


def _memory(charter: Charter, run: RunView) -> dict[str, Any]:
    """Bytes of weights, gradients and moments: as each site's trainer measured them, beside the full model's."""
    total = _full_model(charter)
    sites = {site.site: site.model_bytes for site in run.sites if site.model_bytes}
    return {"full_model": FP32 * 4 * total, "sites": sites}


def _proposal(view: Mapping[str, Any]) -> Facts:
    return dict(view) | {
        "outcome": view["state"],
        "effective_round": view["executed_round"] or view["effective_round"],
        "requested_round": view["effective_round"],
    }


def _versus(share: float) -> str:
    """0.058 -> "5.8% higher"."""
    return f"{abs(share):.1%} {'higher' if share > 0 else 'lower'}"


def _mean(losses: Mapping[str, float]) -> float:
    return sum(losses.values()) / len(losses)


def save(stage: Stage, facts: Facts) -> None:
    write_file(stage.summary, json.dumps(facts, indent=2, ensure_ascii=False).encode() + b"\n")


def load(stage: Stage) -> Facts:
    """Raises ValueError when the file is broken."""
    found: Facts = json.loads(stage.summary.read_text())
    return found


def is_complete(stage: Stage) -> bool:
    """Whether the summary answers all that is now asked for."""
    try:
        loss = load(stage)["loss"]
    except (OSError, ValueError, KeyError):
        return False
    return (not stage.full or len(loss["alone"]) > 1) and (not stage.central or "central" in loss)


def show(stage: Stage, facts: Facts, *, as_json: bool) -> None:
    answer(facts, card(stage, facts), as_json=as_json)


def card(stage: Stage, facts: Facts) -> list[str]:
    """The final card."""
    return [
        "",
        f"A consortium of {len(facts['budgets'])} trained one model at {facts['sites']} sites in {facts['rounds']} "
        + f"rounds and {duration(facts['seconds'])}.",
        "",
        *_loss_card(facts),
        "",
        *_bill_card(facts),
        "",
        *_trust_card(stage, facts),
        "",
        *_next_card(stage),
    ]


def _loss_card(facts: Facts) -> list[str]:
    loss, macro = facts["loss"], facts["macro"]
    columns = [
        ("the seed model", loss["seed"]),
        *((f"{p} alone", found) for p, found in loss["alone"].items()),
    ]
    columns += [("all texts in one place", loss["central"])] if "central" in loss else []
    plain = [("the same without readers", loss["without_readers"])]
    columns = [("the consortium", loss["consortium"]), *plain, *columns]
    domains = list(loss["consortium"])
    rows = [
        (name, *(f"{found[d]:.3f}" for d in domains), f"{_mean(found):.3f}")
        for name, found in columns
        if found
    ]
    lines = [
        "Held-out loss per text (nats per byte, lower is better)",
        table(("model", *domains, "average"), rows),
    ]
    if "lower_than_best_alone" in macro:
        few = "" if len(loss["alone"]) == facts["sites"] else " measured (--full measures all)"
        lines.append(f"Against the best partner alone{few}: {_versus(-macro['lower_than_best_alone'])}.")
    ahead = [
        f"{partner} ({found[d]:.3f} against {loss['consortium'][d]:.3f})"
        for partner, found in loss["alone"].items()
        if found[d := facts["domains"][partner]] < loss["consortium"][d]
    ]
    if ahead:
        lines.append(
            f"On its own text a partner alone is still ahead: {', '.join(ahead)}. It gains the other texts."
        )
    if "above_central" in macro:
        lines.append(f"Against training on all texts in one place: {_versus(macro['above_central'])}.")
    return lines


def _bill_card(facts: Facts) -> list[str]:
    moved, memory = facts["bytes"], facts["memory"]
    total = moved["up"] + moved["down"]
    largest = max(memory["sites"].values(), default=0)
    budgets = [BudgetView.model_validate(b) for b in facts["budgets"]]
    moves = f"{size(total)} ({size(moved['up'])} up, {size(moved['down'])} down)"
    return [
        "The bill",
        budget_table(budgets, facts["currency"]),
        *(f"Round {out['round']} went on without {out['site']}: {out['why']}" for out in facts["left_out"]),
        "",
        f"Moved {moves}; full replicas would have moved {size(moved['full_replication'])}.",
        f"A site's model in training takes {size(largest)} ({facts['routing']}), the full one {size(memory['full_model'])}.",
    ]


def _trust_card(stage: Stage, facts: Facts) -> list[str]:
    lines = []
    for p in facts["proposals"]:
        lines.append(
            f"P-{p['number']:04d} {p['title']}: {p['outcome']}, {p['for_weight']} for, {p['against_weight']} against, "
            f"in force from round {p['effective_round']}."
        )
    journal, release = facts["journal"], facts["release"]
    folder = Path(stage.given) / "release"
    valid = "valid" if release["valid"] else "INVALID: " + "; ".join(release["problems"])
    return [
        *lines,
        f"Journal: {journal['size']} records, verified, root {journal['root']}",
        f"Model: {facts['model_digest']}",
        f"Release: {folder} ({valid})",
    ]


def _next_card(stage: Stage) -> list[str]:
    folder = Path(stage.given)
    return [
        "What to try next",
        f"  mlflow ui --backend-store-uri sqlite:///{folder / 'home' / 'mlflow.db'}",
        f"  hansa coordinator start --home {folder / 'home'} &  hansa dashboard --seat {folder / 'home' / 'operator'}",
        f"  hansa release verify {folder / 'release'}    then change one byte of model.safetensors and verify again",
        f"  hansa journal verify --home {folder / 'home'}",
        f"  {again(folder, '--resume', '--full', '--central')}    measure everybody alone, and central",
        "  docs/getting-started.md    a consortium of your own",
    ]
