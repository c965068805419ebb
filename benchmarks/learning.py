"""Learning: how near one model trained apart comes to the same model trained on all texts in one place.

Protocol, sizes and variants are data in `learning_parts/plan.py`. Every run leaves one JSON file in
`results/learning`, which stays in the repository; a run that has its file is not made again, so that a plan of hours
can be done in parts. Without ``--long`` training steps are timed and the recorded runs shown, with it those that are missing
are made: one to four minutes each on one core; several processes may share the work with
`python -m benchmarks.learning_parts.run`. `python -m benchmarks.learning` writes tables and page of what is recorded, with
the step times that were measured last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.figures import PAGE, RESULTS, Figure, save
from benchmarks.learning_parts import opting_out, rows, step_time
from benchmarks.learning_parts.curves import svg
from benchmarks.learning_parts.plan import SIZES, VARIANTS
from benchmarks.learning_parts.schedule import OURS, RANKED, T1, T2
from benchmarks.learning_parts.tables import KEPT, Runs, table
from benchmarks.learning_parts.texts import REST, SITES
from commons.errors import HansaError
from workers.shard import compute_device

LONG = "hansa bench learning --long"
CURVES = PAGE.parent / "images" / "learning.svg"
SHOWN = ("central", "fedavg", "diloco", "spes", "guests", "copies", "copies-kin")
"""Curves; those of lean shards are of their learned router on the way and would say little."""
_STEPS = 30
"""Of each contender, taken in turn."""
NOTES = (
    (
        "Four sites, one domain each (Python code, scripture, medical codes, dialogue), a byte-level GLM-4-MoE of 0.38 M "
        "parameters with 8 experts, 2 of them active. T1: 20 tokens for each active parameter (19.8, and 5 more in the seed "
        "phase); the short regime, used to choose what is worth T1: 6. Same steps, tokens, batches and inner recipe for all, tuned once on the central run."
    ),
    (
        "Split by document before any run: settings were chosen on the validation side, T1 shows the test side, the short "
        "regime the validation side. Losses are nats per byte; the macro average is over domains."
    ),
    (
        "The seed is a central phase on public text (mathematics and C++ headers, no site's domain), a quarter as many steps. "
        "Alone: the best of the four sites' models over all domains. Fewer bytes: upwards, against sending all gradients in "
        "bf16 at every step."
    ),
    (
        "Opt-out: a site's experts and router rows are taken out of the final state, each site in turn, nothing is trained. "
        "Own domain: on text it held out, against the seed; experts are chosen by readers where there are any, else by posterior. "
        "The seed beside the model: a text that the model reads worse falls to the seed (docs/models.md). A site on public text: a "
        "fifth one, which trains on what the seed was trained on, so that all see a quarter more text than central, none of it of "
        "the four domains (docs/decisions/0024-what-nobody-claims.md). Extracted: a greedy continuation of 64 bytes gives the next "
        "64. Membership: trained against held-out rows by the loss less the seed's."
    ),
    (
        "Chosen on the validation side: inner recipe, H, width and settings of readers, rules of judging, what was worth T1. "
        "Chosen after test scores had been seen: that experts are chosen by posterior at all (docs/decisions/0012-learning.md). The share "
        "of the belief that the seed beside the model begins with was set without any measurement. Variants marked late and "
        "layers: what comes after the first router, or all but the embedding, is its site's own, by posterior of whole shards; "
        "marked own: as the product does it, by readers (docs/decisions/0027-own-layers.md)."
    ),
    (
        "Sovereign: 100 % is the loss that the central run gains over the seed, which has as many parameters and multiplies as many. "
        "This seed was trained on five tokens for each active parameter and on none of the domains' kinds; FlexOlmo's published "
        "mark stands on a public model that was trained to the end."
    ),
    (
        "Lean shards hold their own experts alone. By readers: what the product does, in one pass; each site's reader, a small "
        "next-byte model on the trunk, says how likely it finds the bytes so far, and has a part in the prediction "
        "(docs/decisions/0013-readers.md). By posterior: the same with whole shards in place of readers, a pass for each site. "
        "Nothing is told of the domain, and every row starts with all alike. Oracle: its site's experts alone, no reader. "
        "Central routes as it learned to and has no reader. How far to trust this: docs/decisions/0012-learning.md."
    ),
)


def main(work: Path, *, long: bool = False, tier: str = "T1", texts: Path | None = None) -> list[Figure]:
    """With `long` make the runs that are missing; write `results/learning.json`, curves and page, answer the figures.

    `tier` T2 makes those of 152 M parameters, on a GPU and from the `texts` of a folder, and writes nothing else. Raises HansaError
    where there is neither.
    """
    if tier == "T2":
        return _second_tier(work, texts)
    if tier != "T1" or texts is not None:
        raise HansaError(
            "the tiers are T1, from the texts of installed packages, and T2, from --texts FOLDER"
        )
    if long:
        _make(work, "t1", T1)
        _make(work, "rank", {name: (0,) for name in RANKED})
    return write(_steps())


def _second_tier(work: Path, texts: Path | None) -> list[Figure]:
    size = SIZES["t2"]
    tokens = 4 * size.steps * size.batch * size.length
    if compute_device().type != "cuda":
        raise HansaError(
            f"T2 is for a GPU and there is none here: {tokens:,} tokens through 58 M active parameters take a core some months "
            "a run; T1 is the tier for CPUs"
        )
    if texts is None:
        raise HansaError(
            f"T2 reads {tokens:,} bytes and the texts of installed packages have 18 MB; give --texts a folder with a text "
            f"for each of {', '.join((*SITES, *REST))}"
        )
    _make(work, "t2", T2, texts)
    t2 = Runs(KEPT, "t2", side="test")
    return [
        Figure(*row, "hansa bench learning --tier T2 --texts FOLDER")
        for row in (
            rows.gap(t2, OURS, "central", "T2: gap to central, 4 sites, from a seed", 5),
            *rows.against_spes(t2),
            *rows.worst(t2),
        )
        if row[1] != rows.NOT_RUN
    ]


def write(steps: Sequence[Figure]) -> list[Figure]:
    """Of the runs that are recorded; `steps`: the figures of step times."""
    ranked, t1 = Runs(KEPT, "rank", side="validation"), Runs(KEPT, "t1", side="test")
    found = (*rows.figures(t1), *rows.bad(ranked))
    figures = [*steps, *(Figure(*row, _command(row)) for row in found)]
    shown = [
        table(t1, start="seed", title="**T1, from a seed, test side**"),
        table(t1, start="scratch", title="**T1, from scratch, test side**"),
        table(ranked, start="seed", title="**Short regime, from a seed, validation side**"),
        table(ranked, start="scratch", title="**Short regime, from scratch, validation side**"),
    ]
    tables = [t for t in shown if t]
    if lines := _curves(t1):
        CURVES.write_text(
            svg("T1, from a seed, validation side", lines, across="million tokens", up="nats per byte")
        )
        tables.append("![Loss over tokens](images/learning.svg)")
    save("learning", figures, notes=(*NOTES, _progress(t1, ranked)), tables=tables)
    return figures


def _command(row: rows.Row) -> str:
    return opting_out.COMMAND if row[0].startswith("opt-out") else LONG


def _steps() -> list[Figure]:
    demo = step_time.SIZES["demo"]
    found = step_time.measure(step_time.glm4_moe(demo), demo, repetitions=_STEPS)
    return step_time.figures("demo", found)


def _steps_before() -> list[Figure]:
    """As they were measured last."""
    kept = json.loads((RESULTS / "learning.json").read_text())["figures"]
    return [Figure(**f) for f in kept if f["figure"].startswith("step of a")]


def _progress(t1: Runs, ranked: Runs) -> str:
    wanted = [(name, seed) for name, seeds in T1.items() for seed in seeds]
    made = sum(seed in t1.by_variant.get(name, {}) for name, seed in wanted)
    short = sum(name in ranked.by_variant for name in RANKED)
    return (
        f"Made so far: {made} of the {len(wanted)} runs of the T1 plan, {short} of the {len(RANKED)} short ones. "
        f"`{LONG}` makes the others. T2 (152 M parameters, one GPU, `hansa bench learning --tier T2 --texts FOLDER`) was not run."
    )


def _make(work: Path, size: str, wanted: Mapping[str, tuple[int, ...]], folder: Path | None = None) -> None:
    from benchmarks.learning_parts.run import result_file, run
    from benchmarks.learning_parts.texts import Texts

    missing = [
        (name, seed)
        for name, seeds in wanted.items()
        for seed in seeds
        if not result_file(size, name, seed).exists()
    ]
    if missing:
        texts = Texts.read(folder)
        for name, seed in sorted(missing, key=lambda pair: pair[1]):
            run(VARIANTS[name], SIZES[size], seed, texts=texts, work=work)


def _curves(t1: Runs) -> dict[str, list[tuple[float, float]]]:
    found = {}
    for name in dict.fromkeys(SHOWN):
        if name in t1.by_variant and name != "alone":
            one = next(iter(t1.by_variant[name].values()))
            found[name] = [(tokens / 1e6, loss) for tokens, loss, _ in one["curve"]]
    return found


if __name__ == "__main__":
    write(_steps_before())
