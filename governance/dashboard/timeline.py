"""Rounds as a picture: a row for each site, a column for each round, time running to the right within the column.

Columns are of one width, so that a short round can be read beside a long one; above each stands how long it took.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from commons.run_views import PartView, RoundDetailView
from commons.written import duration

NAMES, ROW, TOP = 104, 18, 40
WIDTH, COLUMN_LEAST, COLUMN_MOST = 1000, 76, 150
_RECT = Markup('<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>')


def timeline(rounds: Sequence[RoundDetailView], sites: Sequence[str], now_ms: int) -> Markup:
    """Empty without rounds. `sites`: rows, those first; sites of older charters follow."""
    if not rounds:
        return Markup("")
    names = list(dict.fromkeys([*sites, *(p.site for r in rounds for p in r.parts)]))
    column = min(COLUMN_MOST, max(COLUMN_LEAST, (WIDTH - NAMES) // len(rounds)))
    width, height = NAMES + column * len(rounds) + 4, TOP + ROW * len(names) + 4
    drawn = [
        Markup('<text x="0" y="{}">{}</text>').format(TOP + ROW * n + 13, name[:15])
        for n, name in enumerate(names)
    ]
    for n, found in enumerate(rounds):
        drawn += _column(found, NAMES + column * n, column, names, height, now_ms)
    return Markup(
        '<svg class="timeline" width="{}" height="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(
        width, height, width, height,
        f"What {len(names)} sites did in rounds {rounds[0].round} to {rounds[-1].round}; the table below says it in words",
        Markup("").join(drawn),
    )  # fmt: skip


def _column(
    found: RoundDetailView, left: int, width: int, names: Sequence[str], height: int, now_ms: int
) -> Iterator[Markup]:
    end_ms = found.closed_ms or max(now_ms, found.opened_ms + 1)
    begin_ms = min([found.opened_ms, *(p.assigned_ms for p in found.parts if p.assigned_ms)])
    scale = (width - 8) / max(1, end_ms - begin_ms)

    def at(ms: int) -> float:
        return left + min(max(0, ms - begin_ms), end_ms - begin_ms) * scale

    took = duration((end_ms - found.opened_ms) / 1000) + ("" if found.closed_ms else "…")
    yield Markup('<text class="strong" x="{}" y="13">{}</text><text x="{}" y="29">{}</text>').format(
        left, f"round {found.round}", left, took
    )
    yield Markup('<line x1="{0}" y1="{1}" x2="{0}" y2="{2}"/>').format(left - 4, TOP - 6, height)
    if found.quorum_ms:
        yield Markup(
            '<line class="quorum" x1="{0:.1f}" y1="{1}" x2="{0:.1f}" y2="{2}"><title>{3}</title></line>'
        ).format(at(found.quorum_ms), TOP - 6, height, f"quorum of {found.quorum} met")
    for part in found.parts:
        y = TOP + ROW * names.index(part.site) + 3
        for kind, start, stop, said in _spans(part, found, end_ms):
            x = at(start)
            yield _RECT.format(kind, x, y, max(2.0, at(stop) - x), ROW - 6, f"{part.site}: {said}")


def _spans(part: PartView, found: RoundDetailView, end_ms: int) -> Iterator[tuple[str, int, int, str]]:
    """(class, from, to, words) of what a site did, by the coordinator's clock, its own work fitted in between."""
    if not part.assigned_ms:
        yield "out", found.opened_ms, end_ms, found.left_out.get(part.site, "left out")
        return
    done = part.admitted_ms or part.rejected_ms or end_ms
    began = min(max(part.started_ms, part.assigned_ms), done) if part.started_ms else part.assigned_ms
    ended = min(max(part.ended_ms, began), done) if part.ended_ms else done
    if began > part.assigned_ms:
        yield "fetch", part.assigned_ms, began, f"got ready in {duration((began - part.assigned_ms) / 1000)}"
    yield "train", began, ended, f"at work for {duration((ended - began) / 1000)}"
    if done > ended:
        yield "send", ended, done, f"sent for {duration((done - ended) / 1000)}"
    if part.rejected_ms:
        yield "bad", done, done, f"rejected: {found.rejected.get(part.site, part.code)}"
    elif part.admitted_ms and done < end_ms:
        yield "wait", done, end_ms, f"waited {duration((end_ms - done) / 1000)} for the others"
    elif not part.admitted_ms and found.closed_ms:
        yield "bad", end_ms, end_ms, "not there when the round closed"
