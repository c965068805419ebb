"""How releases look in MLflow: one registered model, a version per release, aliases that only votes move.

Pure: folds records into items. A version is what the coordinator released; an alias names the version whose manifest the
members voted to release under it. A vote may come before its release: the alias moves when both stand.
"""

from __future__ import annotations

import re

from commons import charter_file, notes
from commons.charter import Released
from commons.records import Kind, Record
from governance.proposals import label
from governance.tracking.items import Alias, File, Item, Proof, Version

_KIND = "hansa-release/v1"
_KEYS = ("consortium", "run", "round", "state", "manifest", "licence")
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)
"""Names that MLflow keeps for itself."""


class Releases:
    def __init__(self) -> None:
        self.model = ""
        """Name of the registered model; empty before the consortium is founded."""
        self._versions: dict[str, str] = {}
        """Manifest -> the version that was made of it."""
        self._voted: list[tuple[Released, dict[str, str]]] = []
        """Releases in the order they were voted, each with what the version is to say of its vote."""
        self._vote: dict[str, str] = {}
        self.aliases: dict[str, str] = {}
        """Alias -> the version it names."""

    def apply(self, index: int, record: Record) -> list[Item]:
        match record.kind:
            case Kind.RELEASE:
                return self._release(index, record)
            case Kind.EXECUTION:
                facts = record.facts
                self._vote = {
                    "hansa.proposal": label(facts["number"]),
                    "hansa.proposal.id": facts["proposal"],
                }
                return []
            case Kind.CHARTER:
                return self._charter(record)
            case _:
                return []

    def _release(self, index: int, record: Record) -> list[Item]:
        said = notes.read(notes.parse(record.body), _KIND, _KEYS)
        idem = f"release/{notes.digest(record.body)}"
        if idem in self._versions.values():
            return []
        self._versions[said["manifest"]] = idem
        run, folder = f"run/{said['run']}", f"release/{said['round']}-{said['manifest'][7:19]}"
        tags = {
            "hansa.consortium": said["consortium"],
            "hansa.run": said["run"],
            "hansa.round": said["round"],
            "hansa.state": said["state"],
            "hansa.manifest": said["manifest"],
            "hansa.licence": said["licence"],
            "hansa.log.index": str(index),
        }
        about = (
            f"Run **{said['run']}** after round {said['round']}, under {said['licence']}. The release folder whose manifest is "
            f"`{said['manifest']}`; `hansa release verify FOLDER` checks it offline."
        )
        return [
            File(run, f"{folder}/release.note", record.body.decode()),
            Proof(run, f"{folder}/release.tlog-proof", index),
            Version(idem, self.model, run, folder, about, tags),
            *self._aliases(said["manifest"]),
        ]

    def _charter(self, record: Record) -> list[Item]:
        charter = charter_file.from_canonical(record.body)
        self.model = self.model or model_name(charter.consortium.name, charter.model.family)
        new = charter.releases[len(self._voted) :]
        vote, self._vote = self._vote, {}
        self._voted += [(released, vote) for released in new]
        return [item for released in new for item in self._aliases(released.manifest)]

    def _aliases(self, manifest: str) -> list[Item]:
        """Those that name this manifest now, where its version stands."""
        if manifest not in self._versions:
            return []
        latest = {released.alias: (released, vote) for released, vote in self._voted}
        items: list[Item] = []
        for name, (released, vote) in latest.items():
            if released.manifest == manifest:
                self.aliases[shown(name)] = self._versions[manifest]
                items.append(Alias(self.model, shown(name), self._versions[manifest], _tags(released, vote)))
        return items


def model_name(consortium: str, family: str) -> str:
    """Of the registered model; neither name has a character that MLflow refuses."""
    return f"{consortium}-{family}"


def shown(alias: str) -> str:
    """An alias as MLflow takes it."""
    return f"hansa-{alias}" if _RESERVED.fullmatch(alias) else alias


def _tags(released: Released, vote: dict[str, str]) -> dict[str, str]:
    return {f"hansa.gates.{released.alias}": released.gates, "hansa.audience": released.audience} | vote
