"""The figures that follow from recorded runs, each with its target: (figure, value, unit, target, met)."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.learning_parts import opting_out
from benchmarks.learning_parts.schedule import (
    EIGHT,
    FAR,
    OFTEN,
    OURS,
    OURS_SCRATCH,
    OWN,
    UNREAD,
    WHOLE,
    WHOLE_OFTEN,
)
from benchmarks.learning_parts.scores import gap_percent
from benchmarks.learning_parts.tables import Runs, Spread

NOT_RUN = "not measured"
BAD = {
    "none": ("nothing wrong, judged all the same", "summed"),
    "little": ("a hundredth of the text", ""),
    "random": ("random bytes", "summed"),
    "shuffled": ("shuffled labels", "summed"),
    "flipped": ("sign-flipped updates", "summed"),
    "huge": ("sign-flipped and thirty times as long", "summed"),
}
"""What is wrong with the last site, and what stands against it."""
SOVEREIGN = {
    "flexolmo": "experts by posterior (FlexOlmo)",
    "flexolmo-read": "experts by readers",
    "flexolmo-read-public": "experts by readers, one site on public text",
    "flexolmo-late": "own layers behind the first router, by posterior",
    "flexolmo-layers": "own layers, all but the embedding, by posterior",
    "flexolmo-read-own": "own layers, all but the embedding, by readers",
    "flexolmo-read-whole": "the same, each site with all of the seed's experts",
}
WORST = {
    OURS: "worst domain against its owner's alone model",
    OFTEN: "the same, the trunk exchanged every 2 steps",
    "lean-late": "the same, own layers behind the first router, by posterior",
    "lean-late-2": "the same, and the trunk before it exchanged every 2 steps",
    OWN: "the same, own layers, all but the embedding, by readers",
    "lean-read-own-1": "the same, own layers from the second on, by readers",
    WHOLE: "the same, and each site with all of the seed's experts, as one alone has them",
    WHOLE_OFTEN: "the same, the trunk below exchanged every 2 steps",
}
OPTED_OUT = {
    UNREAD: "expert shards",
    OURS: "expert shards with readers",
    f"{OURS}-beside": "expert shards with readers, the seed beside the model",
    "lean-read-public": "expert shards with readers, one site on public text",
    f"{WHOLE_OFTEN}-beside": "all of the seed's experts and own layers at each site, the seed beside the model",
    "flexolmo": "experts on a frozen trunk (FlexOlmo)",
    "flexolmo-beside": "experts on a frozen trunk, the seed beside the model",
    "flexolmo-read-public": "experts on a frozen trunk with readers, one site on public text",
}
"""As `learning_parts/opting_out.py` records them."""
Row = tuple[str, float | str, str, str, bool | None]


def figures(t1: Runs) -> Iterator[Row]:
    yield gap(t1, OURS, "central", "gap to central, 4 sites, from a seed", 5)
    yield gap(t1, UNREAD, "central", "the same by posterior, a pass for each site", 5)
    title = "the same by posterior, a row's shard chosen for good after 16 bytes"
    yield gap(t1, UNREAD, "central", title, 5, kind="committed")
    yield gap(t1, OFTEN, "central", "the same, the trunk exchanged every 2 steps", 5)
    yield gap(t1, "lean-read-public", "central", "the same with a site more on public text", 5)
    yield gap(t1, OWN, "central", "the same with own layers, all but the embedding", 5)
    yield gap(t1, "lean-read-own-1", "central", "the same with own layers from the second on", 5)
    title = "the same, and each site with all of the seed's experts"
    yield gap(t1, WHOLE, "central", title, 5)
    yield gap(t1, WHOLE, "central-32", f"{title}, to central with as many", 5)
    yield gap(t1, WHOLE_OFTEN, "central", f"{title}, exchanged every 2 steps", 5)
    yield gap(t1, OURS_SCRATCH, "central-scratch", "gap to central, 4 sites, from scratch", 8)
    yield gap(t1, "lean-scratch", "central-scratch", "the same, from scratch, by posterior", 8)
    yield gap(t1, EIGHT, "central", "gap to central, 8 sites, from a seed", 8)
    yield gap(t1, "lean-8", "central", "the same, 8 sites, by posterior", 8)
    title = "the same, 8 sites, own layers and all of the seed's experts at each"
    yield gap(t1, "lean-read-whole-8", "central", title, 8)
    yield from _routing(t1)
    yield from _far(t1)
    yield from _encoded(t1)
    yield from against_spes(t1)
    yield from _sovereign(t1)
    yield from worst(t1)
    yield from _opted_out()


def _opted_out() -> Iterator[Row]:
    """Sites of the recorded final states opting out one by one (`learning_parts/opting_out.py`)."""
    own, others = (
        "own domain against the seed, the worst site of",
        "other domains against before, the worst of",
    )
    for variant, what in OPTED_OUT.items():
        found = opting_out.recorded("t1", variant)
        if not found:
            yield f"opt-out, {what}: {own} 4", NOT_RUN, "", "<= +1 %", False
            yield f"opt-out, {what}: {others} 3", NOT_RUN, "", "<= +0.5 %", False
            continue
        worst_own, worst_other = opting_out.worst(found)
        yield f"opt-out, {what}: {own} {len(found)}", round(worst_own, 1), "%", "<= +1 %", worst_own <= 1
        yield f"opt-out, {what}: {others} 3", round(worst_other, 2), "%", "<= +0.5 %", worst_other <= 0.5
        membership = max(s["exposures"]["after"]["membership_calibrated"] for s in found)
        yield (
            f"opt-out, {what}: membership AUC after, the highest",
            round(membership, 3),
            "",
            "0.5 is guessing",
            None,
        )
        extracted = max(s["exposures"]["after"]["extracted_trained"] for s in found)
        yield (
            f"opt-out, {what}: rows extracted after",
            round(100 * extracted, 1),
            "%",
            "<= 0.1 %",
            extracted <= 0.001,
        )

    plain, beside = (opting_out.recorded("t1", name) for name in (OURS, f"{OURS}-beside"))
    if len(plain) == len(beside) > 0:
        title = "what the seed beside the model costs while nobody has left"
        yield title, round(opting_out.cost(plain, beside), 2), "%", "", None


def _routing(t1: Runs) -> Iterator[Row]:
    target = "<= 1 %"
    for title, variant, kind in (
        ("routing loss: by readers, above oracle-routed", OURS, None),
        ("the same by posterior, a pass for each site", UNREAD, None),
        ("the same by readers, all of the seed's experts and own layers at each site", WHOLE_OFTEN, None),
        ("the same by the learned router", UNREAD, "losses"),
    ):
        if variant not in t1.by_variant:
            yield title, NOT_RUN, "", target, False
            continue
        loss = gap_percent(t1.spread(variant, kind).mean, t1.spread(variant, "oracle").mean)
        yield title, round(loss, 2), "%", target, loss <= 1


def gap(t1: Runs, variant: str, central: str, title: str, most: float, kind: str | None = None) -> Row:
    gap = t1.gap(variant, central, kind) if variant in t1.by_variant else None
    if gap is None:
        return title, NOT_RUN, "", f"<= +{most} %", False
    seeds = len(gap.values)
    value = f"{gap.text(1)} ({seeds} seed{'s' if seeds > 1 else ''})"
    return title, value, "%", f"<= +{most} %", gap.mean <= most


def _far(t1: Runs) -> Iterator[Row]:
    times, cost, encoding = (
        "bytes up per site against per-step bf16, H = 130, int4, the last exchange in bf16",
        "what that costs in loss, against H = 10, fp32",
        "and against H = 130, fp32",
    )
    if not {UNREAD, FAR} <= set(t1.by_variant):
        yield times, NOT_RUN, "", ">= 1,000x fewer", False
        yield from ((title, NOT_RUN, "", "", None) for title in (cost, encoding))
        return
    fewer = t1.fewer_bytes(FAR)
    yield times, round(fewer), "x fewer", ">= 1,000x fewer", fewer >= 1000
    for title, gap in ((cost, t1.gap(FAR, UNREAD)), (encoding, t1.gap(FAR, "lean-130"))):
        yield title, round(gap.mean, 2) if gap else NOT_RUN, "%" if gap else "", "", None


def _encoded(t1: Runs) -> Iterator[Row]:
    """What an encoding of the exchanged deltas costs, nothing else changed."""
    for variant, what, most in (
        ("lean-int4-closing", "int4 with error feedback, the run's last exchange in bf16", 0.1),
        ("lean-int2-closing", "two bits with error feedback, the run's last exchange in bf16", 0.3),
        ("lean-int4", "int4 with error feedback, in the last exchange too", None),
        ("lean-trunk-int4", "the same, experts in fp32", None),
        ("lean-int2", "two bits with error feedback, experts once in int4", None),
    ):
        title, gap = f"loss above fp32, {what}, H = 10", t1.gap(variant, UNREAD)
        target = "" if most is None else f"<= +{most} %"
        if gap is None:
            yield title, NOT_RUN, "", target, None if most is None else False
        else:
            yield title, round(gap.mean, 2), "%", target, None if most is None else gap.mean <= most


def _sovereign(t1: Runs) -> Iterator[Row]:
    """Of experts on the seed's frozen trunk, against the central run, which is unrestricted and multiplies as much."""
    target = ">= 96 %"
    for variant, what in SOVEREIGN.items():
        title = f"sovereign, {what}: share of central's loss improvement over the seed"
        share = t1.improvement(variant)
        if share is None:
            yield title, NOT_RUN, "", target, False
        else:
            yield title, round(share.mean, 1), "%", target, share.mean >= 96


def against_spes(t1: Runs) -> Iterator[Row]:
    """Each SPES figure for the main variant, for the same in int4, and for the one that exchanges rarely and in int4."""
    for variant, what in (
        (OURS, "H = 10, fp32"),
        ("lean-int4-closing", "H = 10, int4"),
        (FAR, "H = 130, int4"),
    ):
        lower = f"loss below a SPES reproduction's, equal tokens, {what}"
        fewer = f"bytes up against SPES's, {what}"
        if not {variant, "spes"} <= set(t1.by_variant):
            yield lower, NOT_RUN, "", ">= 1 %", False
            yield fewer, NOT_RUN, "", ">= 10x fewer", False
            continue
        gap = t1.gap("spes", variant)
        below = 100 * (1 - 1 / (1 + gap.mean / 100)) if gap else 0.0
        yield lower, round(below, 1), "%", ">= 1 %", below >= 1
        times = t1.fewer_bytes(variant) / t1.fewer_bytes("spes")
        yield fewer, round(times, 1), "x fewer", ">= 10x fewer", times >= 10


def worst(t1: Runs) -> Iterator[Row]:
    target = "no domain worse"
    for variant, title in WORST.items():
        seeds = sorted(t1.by_variant.get(variant, {}).keys() & t1.by_variant.get("alone", {}).keys())
        if not seeds:
            yield title, NOT_RUN, "", target, False
            continue
        above = [_above_own(t1, variant, seed) for seed in seeds]
        worst = max(Spread(tuple(one[d] for one in above)).mean for d in above[0])
        yield title, round(worst, 1), "%", target, worst <= 0


def _above_own(t1: Runs, variant: str, seed: int) -> dict[str, float]:
    """Percent by which each domain is above its owner's alone model."""
    ours = t1.losses(variant, seed)
    return {d: gap_percent(ours[d], own) for d, own in t1.losses("alone", seed, "own").items()}


def bad(ranked: Runs) -> Iterator[Row]:
    """What a bad site costs the others: the one that loses most, against the same run without anything wrong."""
    for kind, (what, defence) in BAD.items():
        title = f"one bad site of four, {what}: the others' domains lose at most"
        name = f"bad-{kind}{defence and f'-{defence}'}"
        if not all(0 in ranked.by_variant.get(of, {}) for of in (UNREAD, name)):
            yield title, NOT_RUN, "", "<= 2 %", False
            continue
        loss = _worst_of_others(ranked, name)
        yield title, round(loss, 1), "%", "<= 2 %", loss <= 2
        if defence and f"bad-{kind}" in ranked.by_variant:
            found = _worst_of_others(ranked, f"bad-{kind}")
            yield "the same, undefended", round(found, 1) if found < 1000 else "destroyed", "%", "", None


def _worst_of_others(ranked: Runs, name: str) -> float:
    """Percent of loss, the mean over the seeds that were run with it and without."""
    seeds = sorted(ranked.by_variant[UNREAD].keys() & ranked.by_variant[name].keys())
    pairs = [(ranked.losses(name, seed), ranked.losses(UNREAD, seed)) for seed in seeds]
    others = list(pairs[0][0])[:-1]
    return max(Spread(tuple(gap_percent(ours[d], clean[d]) for ours, clean in pairs)).mean for d in others)
