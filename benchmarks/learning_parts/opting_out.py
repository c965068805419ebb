"""What is left of a site's text when its experts are retired from a run's final state: `python -m benchmarks.learning_parts.opting_out t1 lean 2`.

Each site opts out in turn, with `--beside` from a model that has its seed beside it (`hansa.beside`). Reads the state that a run left with its work and the seed it started from, trains nothing,
and leaves one JSON file that stays in the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import machine
from benchmarks.learning_parts import scores
from benchmarks.learning_parts.plan import SIZES, VARIANTS, Size
from benchmarks.learning_parts.run import final_file, seed_experts, seed_file
from benchmarks.learning_parts.sites import PUBLIC
from benchmarks.learning_parts.tables import KEPT
from benchmarks.learning_parts.texts import Texts
from commons.experts.map import ExpertMap, Kind
from commons.experts.remaking import carried_over
from hansa.forgetting import Weights, measure
from hansa.reading import Reader
from workers.durable import read_arrays

FILES = KEPT.parent / "opting_out"
COMMAND = "python -m benchmarks.learning_parts.opting_out t1 lean 2"
LIMIT = 128
"""Rows of each text."""


def recorded(size: str, variant: str) -> list[dict[str, Any]]:
    """One entry for each site and seed of a variant."""
    files = sorted(FILES.glob(f"{size}-{variant}-[0-9].json"))
    runs = (json.loads(file.read_text())["sites"] for file in files)
    return [{"site": site, **of} for sites in runs for site, of in sites.items()]


def worst(found: list[dict[str, Any]]) -> tuple[float, float]:
    """Percent: a site's own domain above the seed; another domain above before."""
    own = [100 * (f["losses"][f["site"]]["after"] / f["losses"][f["site"]]["seed"] - 1) for f in found]
    others = [
        100 * (of["after"] / of["before"] - 1)
        for f in found
        for d, of in f["losses"].items()
        if d != f["site"]
    ]
    return max(own), max(others)


def cost(plain: list[dict[str, Any]], beside: list[dict[str, Any]]) -> float:
    """Percent that the seed beside a model adds to its losses, while nobody has opted out."""
    both = zip(plain, beside, strict=True)
    ratios: list[float] = [
        b["losses"][d]["before"] / of["before"] for p, b in both for d, of in p["losses"].items()
    ]
    return 100 * (sum(ratios) / len(ratios) - 1)


def run(
    size_name: str,
    variant: str,
    seed: int,
    *,
    texts: Texts,
    work: Path,
    beside: bool = False,
    limit: int = LIMIT,
) -> dict[str, Any]:
    """Of one final state, every site in turn; on disk when it returns. Experts are chosen by readers or, without, by posterior."""
    of, sites = VARIANTS[variant], list(texts.train)
    size = replace(SIZES[size_name], reader=of.reader, own_from=of.own_from)
    owners = [*sites, PUBLIC] if of.public_site else sites
    whole = size.experts(owners, of.experts)
    begun = replace(size, reader=0, own_from=None).experts(owners, seed_experts(of))
    start = Weights(begun, read_arrays(seed_file(of, size_name, seed, work)))
    final = Weights(whole, read_arrays(final_file(size_name, variant, seed, work)))
    found: dict[str, Any] = {
        "size": size_name, "variant": variant, "seed": seed, "beside": beside, "machine": machine(), "sites": {},
    }  # fmt: skip
    for gone in sites:
        found["sites"][gone] = _without(
            gone, size, texts, start=start, final=final, beside=beside, limit=limit
        )
        _say(gone, found["sites"][gone])
    FILES.mkdir(parents=True, exist_ok=True)
    named = f"{variant}-beside" if beside else variant
    (FILES / f"{size_name}-{named}-{seed}.json").write_text(json.dumps(_rounded(found), indent=1) + "\n")
    return found


def _without(
    gone: str, size: Size, texts: Texts, *, start: Weights, final: Weights, beside: bool, limit: int
) -> dict[str, Any]:
    """What `measure` says; other domains also held to their own sites' experts; the own domain also with each other
    site's experts alone, and with the site's experts as the seed has them in place of none."""
    whole = final.expert_map
    left = ExpertMap.from_owners(size.model, {e: s for e, s in whole.owners.items() if s != gone})
    after = Weights(left, carried_over(final.state, whole.experts, left))
    others = {d: t for d, t in texts.test.items() if d != gone}
    measured = measure(
        size.model, seed=start, before=final, after=after, own=(gone, texts.train[gone]), others=others,
        length=size.length, by_site=not size.reader, seed_beside=beside, limit=limit,
    )  # fmt: skip
    rest = scores.rows_of(others, size.length, limit)
    own = texts.train[gone].held_out_rows(length=size.length, limit=limit)
    held = {
        name: scores.oracle_losses(
            size.model, w.expert_map, {d: dict(w.state) for d in rest}, rest, {d: [d] for d in rest}
        )
        for name, w in (("before", final), ("after", after))
    }
    alone = {
        site: scores.oracle_losses(size.model, left, {site: dict(after.state)}, {gone: own}, {gone: [site]})[
            gone
        ]
        for site in rest
    }
    found = {**asdict(measured), "oracle": held, "own_by_site": alone}
    if size.reader:
        return found
    reset = Reader(size.model, whole, _with_seeds(gone, start, final), by_site=True).read(own).losses.mean()
    return {**found, "own_with_seed_experts": float(reset)}


def _with_seeds(gone: str, start: Weights, final: Weights) -> dict[str, Any]:
    """The final state with the site's experts, and their router rows, as the seed has them."""
    state, whole = dict(final.state), final.expert_map
    rows = [n for n, e in enumerate(whole.experts) if whole.owners[e] == gone]
    for part in whole.slices:
        if part.expert is not None and whole.owners[part.expert] == gone:
            state[part.name] = start.state[part.name]
        elif part.kind is Kind.ROUTER:
            state[part.name] = state[part.name].copy()
            state[part.name][rows] = start.state[part.name][rows]
    return state


def _say(gone: str, found: dict[str, Any]) -> None:
    for domain, of in found["losses"].items():
        print(f"  {domain:10}" + "".join(f"  {n} {x:.4f}" for n, x in of.items()), flush=True)
    for name, of in found["exposures"].items():
        print(
            f"  {gone} {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in of.items() if v is not None),
            flush=True,
        )


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 5)
        case dict():
            return {k: _rounded(v) for k, v in value.items()}
    return value


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("variant")
    parser.add_argument("seeds", nargs="+", type=int)
    parser.add_argument("--work", type=Path, default=Path("runs/bench/learning"))
    parser.add_argument("--beside", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    texts = Texts.read()
    for seed in given.seeds:
        print(f"{given.size} {given.variant} {seed}", flush=True)
        run(given.size, given.variant, seed, texts=texts, work=given.work, beside=given.beside)


if __name__ == "__main__":
    main(sys.argv[1:])
