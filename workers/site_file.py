"""The site's file, SITE.toml: who the site is, which text it has, which Ray it uses, what its owner allows.

Owns the schema and the paths. Reads no text and opens no seat; `workers.site` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from commons import toml_file
from commons.section import Name, Section
from commons.toml_file import Problem
from workers.policy import Policy

Text = Annotated[str, Field(min_length=1, max_length=4096)]


class SiteTable(Section):
    """`[site]`. Paths that are not absolute count from the folder of the site's file."""

    name: Name
    partner: Name
    text: Text
    """UTF-8 file or folder of .txt files; never leaves the site."""
    public: Text | None = None
    """The consortium's public text, where the charter mixes some into every batch."""
    probe: Text | None = None
    """The public text that the charter's `[probe]` names, where it names one."""
    seat: Text = "seat"
    home: Text = "state"
    """What makes the site go on after a stop: cached model, finished rounds, verified checkpoint."""


class RayTable(Section):
    """`[ray]`: where the training runs and what it takes of it."""

    address: Annotated[str, Field(pattern=r"^(local|auto|[A-Za-z0-9_.\[\]:-]+:[0-9]{1,5})$")] = "local"
    """`local`: a Ray of the site's own. `host:port` of a cluster's head. `auto`: the cluster of this Ray job."""
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    """May be a fraction on a shared cluster: 0.5 lets two sites share a core."""
    gpus: Annotated[float, Field(ge=0, le=64)] = 0.0


class _Document(Section):
    site: SiteTable
    ray: RayTable = RayTable()
    policy: Policy = Policy()


class SiteFile(Section):
    """A site's file with every path absolute."""

    path: Path
    name: str
    partner: str
    text: Path
    public: Path | None
    probe: Path | None
    seat: Path
    home: Path
    ray: RayTable
    policy: Policy

    @property
    def key(self) -> Path:
        """The site's private note key, written beside its seat when it joined."""
        return self.seat / "site.key"


def load(path: Path) -> SiteFile:
    """Read SITE.toml. Raises ConfigError with all problems at once, each `path:line: section.key: what`."""
    folder = path.resolve().parent
    document = toml_file.load(path, _Document, further=lambda found: _missing(found, folder))
    site = document.site
    return SiteFile(
        path=path.resolve(),
        name=site.name,
        partner=site.partner,
        text=folder / site.text,
        public=None if site.public is None else folder / site.public,
        probe=None if site.probe is None else folder / site.probe,
        seat=folder / site.seat,
        home=folder / site.home,
        ray=document.ray,
        policy=document.policy,
    )


def _missing(document: _Document, folder: Path) -> Iterator[Problem]:
    site = document.site
    for key, given in (("text", site.text), ("public", site.public)):
        if given is not None and not (folder / given).exists():
            what = f"{folder / given} does not exist (name a UTF-8 text file or a folder of .txt files)"
            yield Problem(("site", key), what)
    if site.probe is not None and not (folder / site.probe).is_file():
        what = f"{folder / site.probe} is no file (name the text that the charter's [probe] names)"
        yield Problem(("site", "probe"), what)
    if not (folder / site.seat / "seat.toml").exists():
        what = f"{folder / site.seat} holds no seat (join first: `hansa site join INVITE`)"
        yield Problem(("site", "seat") if "seat" in site.model_fields_set else ("site",), what)
