"""The demo's first minute: keys, texts, charter, signatures; then seats for members and sites.

Every step looks first whether it was done, so that a demo interrupted anywhere goes on from there.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from commons import charter_file
from commons.charter import Charter
from commons.errors import StoreError
from commons.identity import write_file
from hansa.charters import sign_charter
from hansa.demo import cast
from hansa.demo.stage import Stage
from hansa.joining import join_as_member, join_as_site
from hansa.keys import new_key, read_public
from hansa.samples import PUBLIC, Sample, SamplesError, write_samples

INVITES = "invites"
SITE_CPUS = 0.5
"""Four sites share the demo's two Ray CPUs."""


def prepare_texts(stage: Stage) -> list[Sample]:
    """The sites' texts and the public one, written once; the public one is the last."""
    index = stage.texts / "samples.json"
    if not index.exists():
        try:
            made = write_samples(stage.texts, sites=len(cast.TRAINERS))
        except SamplesError as error:
            raise StoreError(str(error)) from None
        facts = [asdict(sample) | {"path": sample.path.name} for sample in made]
        write_file(index, json.dumps(facts, indent=2).encode() + b"\n")
    found = json.loads(index.read_text())
    return [Sample(**facts | {"path": stage.texts / facts["path"]}) for facts in found]


def found(stage: Stage, samples: list[Sample]) -> Charter:
    """Keys for everybody and a charter that all have signed."""
    for name in (cast.CONSORTIUM, *cast.MEMBERS):
        if not (stage.keys / f"{name}.key").exists():
            new_key(name, stage.keys)
    if not stage.charter.exists():
        keys = {
            name: read_public(stage.keys / f"{name}.key").vkey for name in (cast.CONSORTIUM, *cast.MEMBERS)
        }
        drawn = cast.charter(
            stage.script, stage.scale, keys=keys, samples=samples[:-1], seed=stage.seed, joint=stage.joint
        )
        charter_file.write(drawn, stage.charter)
    for name in cast.MEMBERS:
        if not (stage.founding / f"{name}.note").exists():
            sign_charter(stage.charter, stage.keys / f"{name}.key", stage.founding)
    return charter_file.load(stage.charter)


def texts_of(samples: list[Sample]) -> tuple[dict[str, Path], Path]:
    """Domain -> text of the sites, and the public text."""
    return {s.domain: s.path for s in samples if s.domain != PUBLIC}, samples[-1].path


def seat_sites(stage: Stage, charter: Charter, samples: list[Sample]) -> None:
    """Real enrolment of every site that has no seat yet; the coordinator must be up."""
    texts, public = texts_of(samples)
    for site in charter.sites:
        folder = stage.site(site.partner)
        if not (folder / "seat" / "seat.toml").exists():
            join_as_site(
                stage.home / INVITES / f"site-{site.name}.invite", stage.keys / f"{site.partner}.key", folder,
                text=texts[site.domain], public=public, cpus=SITE_CPUS,
            )  # fmt: skip


def seat_members(stage: Stage) -> None:
    """The same for every member."""
    for name in cast.MEMBERS:
        if not (stage.seat(name) / "seat.toml").exists():
            invite = stage.home / INVITES / f"member-{name}.invite"
            join_as_member(invite, stage.keys / f"{name}.key", stage.seat(name))
