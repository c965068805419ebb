"""What MLflow says of a run when it opens: its parameters and its description. Pure."""

from __future__ import annotations

from commons.charter import Charter


def parameters(charter: Charter, rounds: int) -> dict[str, str]:
    """The configuration at the start, flattened. Later versions are files and tags: parameters cannot change."""
    whole = charter.model_dump(mode="json")
    found = {"rounds": str(rounds)}
    pending = [(name, whole[name]) for name in ("model", "learning", "features")]
    pending.append(("round", whole["rounds"]))
    for key, value in pending:
        if isinstance(value, dict):
            pending += [(f"{key}.{name}", inner) for name, inner in value.items()]
        else:
            found[key] = str(value)
    return found


def about(run: str, charter: Charter) -> str:
    lines = [f"Run **{run}** of consortium **{charter.consortium.name}**; one child run per partner.", ""]
    lines += ["| site | partner | paid by | domain | experts |", "|---|---|---|---|---|"]
    lines += [
        f"| {s.name} | {s.partner} | {s.payer} | {s.domain} | {' '.join(s.experts)} |" for s in charter.sites
    ]
    lines += ["", "Steps are rounds; for `eval/*` the rounds the state went through (0: the seed model)."]
    return "\n".join([*lines, "Losses are nats per byte. The journal is the truth; this is its mirror."])
