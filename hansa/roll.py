"""The roll of experts and the opt-out report, as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commons.views import ExpertsView
from hansa.output import table


def expert_table(view: ExpertsView) -> str:
    """The experts that are there, and the names of those that are not any more."""
    head = ("index", "expert", "site", "partner", "parameters", "like", "from round", "trained in", "tokens")
    rows = [
        (e.index, e.expert, e.site or "(escrow)", e.partner or "-", e.parameters, e.like or "-",
         e.from_round or "next", e.trained_round or "-", e.tokens)
        for e in view.experts
    ]  # fmt: skip
    gone = [f"Retired: {', '.join(view.retired)}"] if view.retired else []
    return "\n".join([table(head, rows), *gone])


def opt_out_text(report: Mapping[str, Any], folder: Path) -> list[str]:
    """A report of `hansa.opt_out` for a person."""
    said, chosen = report["verdict"], report["experts_chosen"]
    chosen += ", the seed beside the model" if report.get("seed_beside") else ""
    losses = [
        (domain + (" (own)" if domain == report["domain"] else ""), *(f"{of[m]:.4f}" for m in ("seed", "before", "after")))
        for domain, of in report["losses"].items()
    ]  # fmt: skip
    names = {
        "extracted_trained": "extracted, trained rows", "extracted_unseen": "extracted, unseen rows",
        "matched_trained": "bytes right, trained rows", "matched_unseen": "bytes right, unseen rows",
        "membership": "membership AUC", "membership_calibrated": "the same, against the seed",
    }  # fmt: skip
    exposed = [
        (name, *("-" if (x := report["exposures"][m][key]) is None else f"{x:.3f}" for m in ("seed", "before", "after")))
        for key, name in names.items()
    ]  # fmt: skip
    error = report["exposures"]["after"]["membership_error"]
    own = "at most 1 % above" if said["own_within"] else "MORE than 1 % above"
    others = "at most 0.5 % worse" if said["others_within"] else "MORE than 0.5 % worse"
    return [
        f"Without {', '.join(report['experts'])} of site {report['site']}, experts chosen {chosen}:",
        "",
        table(("loss, nats per byte", "seed", "before", "after"), losses),
        "",
        table((f"text of {report['site']}, {report['rows']} rows", "seed", "before", "after"), exposed),
        "",
        f"An AUC of 0.5 is guessing; its standard error is {error:.3f}.",
        f"Own domain {said['own_above_seed_percent']:+.2f} % against the seed: {own}.",
        f"Other domains, the worst {max(said['others_above_before_percent'].values(), default=0):+.2f} %: {others}.",
        *([f"Copies of these experts stay: {', '.join(report['copies'])}"] if report["copies"] else []),
        report["residue"],
        f"Signed: {folder / 'report.note'}",
    ]
