"""The opt-out report: what is left of a site's text in a released model without the site's experts, measured and signed.

`report.json` holds the numbers and names every input by digest; `report.note` is signed by a member of the charter. The
model after is made from the one before by taking the site's experts out, so whoever has the release checks that too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from commons import charter_file
from commons.charter import Charter
from commons.errors import ConfigError, HansaError
from commons.experts.map import ExpertMap
from commons.experts.remaking import carried_over
from commons.experts.settings import SettingError
from commons.experts.stored import OWN, unstacked, weights_files
from commons.experts.tokenizer import FILE
from commons.experts.whole import seed_map
from commons.identity import read_file, write_file
from commons.names import Digest, ExpertId, SiteId
from commons.notes import NoteError, Signer, Verifier, compose, digest, open_note, read
from commons.records import canonical_json
from commons.states import Blob, state_digest
from commons.states.naming import name_of
from orchestrator.release.layout import CHARTER
from orchestrator.seed import experts_in

if TYPE_CHECKING:
    from workers.data import Corpus

State = dict[str, NDArray[np.float32]]
REPORT, NOTE = "report.json", "report.note"
KIND = "hansa-opt-out/v1"
KEYS = ("consortium", "partner", "site", "charter", "before", "after", "seed", "report")
OWN_MOST, OTHERS_MOST = 1.0, 0.5
"""Percent: own domain above the seed, other domains above before."""
RESIDUE = (
    "The site's experts, their router rows and what was remembered beside them are gone. What all sites' updates made of "
    "the shared trunk and of the other router rows stays, the site's share in it included; no step undoes it, and the "
    "numbers here bound what these attacks see of it, not what any could. Copies of the site's experts are other experts."
)


@dataclass(frozen=True)
class Models:
    """The three models that are compared, and the charter of the release."""

    charter: Charter
    site: str
    before_map: ExpertMap
    after_map: ExpertMap
    seed_map: ExpertMap
    seed: State
    before: State
    after: State
    tokenizer: Path
    """The release's."""

    @property
    def digests(self) -> dict[str, Digest]:
        return {name: _digest(getattr(self, name)) for name in ("seed", "before", "after")}


def load(release: Path, seed: Path, site: str) -> Models:
    """A release, the run's seed, and the model without the site's experts. Raises ConfigError, HansaError."""
    charter, before_map, before = _released(release)
    entry = charter.site(site)
    if entry is None:
        raise ConfigError(
            [f"{release} has no site {site!r}; there are {', '.join(s.name for s in charter.sites)}"]
        )
    after_map = _without(charter, site)
    begun_map, begun = _seed(seed, charter, before_map)
    return Models(
        charter=charter,
        site=site,
        before_map=before_map,
        after_map=after_map,
        seed_map=begun_map,
        seed=begun,
        before=before,
        after=_left(before, before_map, after_map),
        tokenizer=release / FILE,
    )


def write(
    folder: Path,
    models: Models,
    *,
    text: Path,
    others: Mapping[str, Path],
    signer: Signer,
) -> dict[str, Any]:
    """Measure, sign and write into `folder`; the report. Raises ConfigError for a text or a signer that cannot be."""
    from hansa.forgetting import Weights, measure
    from workers.data import CorpusError

    charter, site = models.charter, models.charter.site(models.site)
    assert site is not None, "the models were loaded for a site of the charter"
    member = charter.member(signer.name)
    if member is None or member.key != signer.vkey:
        raise ConfigError([f"{signer.name} is no member of the release's charter, or has another key there"])
    domains = {s.domain for s in charter.sites} - {site.domain}
    if odd := sorted(set(others) - domains):
        raise ConfigError(
            [f"no other site has the domain {odd[0]!r}; there are {', '.join(sorted(domains))}"]
        )
    try:
        read = _read(models, {site.domain: text, **others})
        own, rest = read[site.domain], {d: read[d] for d in others}
        found = measure(
            charter.model,
            seed=Weights(models.seed_map, models.seed),
            before=Weights(models.before_map, models.before),
            after=Weights(models.after_map, models.after),
            own=(site.domain, own),
            others=rest,
            length=charter.learning.sequence_length,
            by_site=_chosen(charter) == "by posterior",
            seed_beside=charter.release.seed_beside,
        )
    except CorpusError as error:
        raise ConfigError([str(error)]) from error
    measured = {key: _rounded(value) for key, value in asdict(found).items()}
    report = {
        "consortium": charter.consortium.name,
        "charter": charter_file.digest(charter),
        "site": site.name,
        "partner": site.partner,
        "domain": site.domain,
        "experts": list(site.experts),
        "copies": [a.expert for a in charter.added if a.like in site.experts],
        "experts_chosen": _chosen(charter),
        "seed_beside": charter.release.seed_beside,
        "models": models.digests,
        "texts": {c.name: {"digest": c.digest, "bytes": c.bytes} for c in (own, *rest.values())},
        **measured,
        "verdict": verdict(measured["losses"], site.domain),
        "residue": RESIDUE,
    }
    _sign(folder, report, signer)
    return report


def _read(models: Models, texts: Mapping[str, Path]) -> dict[str, Corpus]:
    from workers.data import Corpus
    from workers.encoder import Encoder

    encoder = Encoder.load(models.tokenizer, models.charter.model.tokenizer)
    length = models.charter.learning.sequence_length
    return {d: Corpus.load(t, sequence_length=length, name=d, encoder=encoder) for d, t in texts.items()}


def _sign(folder: Path, report: Mapping[str, Any], signer: Signer) -> None:
    data = canonical_json(report)
    named = {**report, **report["models"], "report": digest(data)}
    write_file(folder / REPORT, data)
    write_file(folder / NOTE, signer.sign(compose(KIND, [(key, str(named[key])) for key in KEYS])))


def verdict(losses: Mapping[str, Mapping[str, float]], own: str) -> dict[str, Any]:
    """Percent by which the own domain is above the seed and the worst other domain above before; what was promised."""
    above_seed = 100 * (losses[own]["after"] / losses[own]["seed"] - 1)
    harmed = {d: 100 * (of["after"] / of["before"] - 1) for d, of in losses.items() if d != own}
    worst = max(harmed.values(), default=0.0)
    return {
        "own_above_seed_percent": round(above_seed, 4),
        "others_above_before_percent": {d: round(x, 4) for d, x in harmed.items()},
        "own_within": above_seed <= OWN_MOST,
        "others_within": worst <= OTHERS_MOST,
    }


def verify(folder: Path, release: Path) -> list[str]:
    """Everything that is wrong with a report about this release, each in a sentence; empty when it holds. Needs no
    network, and measures nothing again: who does compares numbers."""
    try:
        charter, before_map, before = _released(release)
        data = read_file(folder / REPORT, "ask its author for it")
        report = json.loads(data)
        verifiers = [Verifier.from_vkey(m.key) for m in charter.members]
        note = open_note(read_file(folder / NOTE, "ask its author for it"), verifiers)
        said = read(note, KIND, KEYS)
        site = str(report["site"])
        after = _left(before, before_map, _without(charter, site))
        wanted = {
            "consortium": charter.consortium.name,
            "charter": charter_file.digest(charter),
            "before": _digest(before),
            "after": _digest(after),
            "report": digest(data),
            "seed": report["models"]["seed"],
            "site": site,
        }
        problems = [f"the note says {k} {said[k]}, here it is {v}" for k, v in wanted.items() if said[k] != v]
        if canonical_json(report) != data:
            problems.append(f"{REPORT} is not in its one form")
        if report["models"] != {k: said[k] for k in ("seed", "before", "after")}:
            problems.append(f"{REPORT} is about other models than the note")
        if report["verdict"] != verdict(report["losses"], report["domain"]):
            problems.append("the verdict does not follow from the losses")
        if report["residue"] != RESIDUE:
            problems.append("it does not state what stays in the trunk")
    except HansaError as error:
        return [str(error)]
    except (NoteError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        return [f"the report cannot be read: {error}"]
    return problems


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 6) if isinstance(value, float) else value


def _released(release: Path) -> tuple[Charter, ExpertMap, State]:
    data = read_file(release / CHARTER, "name a folder that `hansa release make` wrote")
    try:
        charter = charter_file.from_canonical(data)
        expert_map = ExpertMap.from_charter(charter)
    except ValueError as error:
        raise HansaError(f"{release / CHARTER}: {error}") from error
    return charter, expert_map, _weights(release, expert_map)


def _without(charter: Charter, site: str) -> ExpertMap:
    left = {
        ExpertId(e): SiteId(owner) if owner else None for e, owner in charter.owners.items() if owner != site
    }
    try:
        return ExpertMap.from_owners(charter.model, left)
    except SettingError as wrong:
        raise ConfigError([f"without the experts of {site} there is no model: {wrong}"]) from wrong


def _chosen(charter: Charter) -> str:
    """How a released model's experts are chosen here: as they are in use; lean shards that have no readers by posterior."""
    if charter.learning.routing == "lean":
        return "by readers" if charter.model.reader else "by posterior"
    return "by the router"


def _left(state: State, before: ExpertMap, after: ExpertMap) -> State:
    kept = carried_over(state, before.experts, after)
    return {part.name: kept[part.name] for part in after.slices}


def _seed(folder: Path, charter: Charter, expert_map: ExpertMap) -> tuple[ExpertMap, State]:
    """A run's seed, which may be one for each site, under its own map."""
    whole = seed_map(charter)
    if whole is not None and experts_in(folder, whole) == len(whole.experts):
        return whole, _weights(folder, whole)
    return expert_map, _weights(folder, expert_map, begun=True)


def _weights(folder: Path, expert_map: ExpertMap, *, begun: bool = False) -> State:
    """`begun`: a run began from it, so that it may be without own layers."""
    files = [f for f in weights_files(expert_map) if f != OWN or not begun or (folder / f).exists()]
    try:
        tensors = {n: a for file in files for n, a in load_file(folder / file).items()}
        state = unstacked(expert_map, tensors)
    except (OSError, SafetensorError, KeyError) as error:
        raise HansaError(f"{folder} does not hold the charter's model: {error}") from error
    for part in expert_map.slices:
        if state[part.name].shape != part.shape or state[part.name].dtype != np.float32:
            raise HansaError(
                f"{folder} holds {part.name} as {state[part.name].shape}, not {part.shape} in fp32"
            )
    return state


def _digest(state: Mapping[str, NDArray[np.float32]]) -> Digest:
    """Of the weights alone: as a state's manifest would have it if every slice were stored whole."""
    blobs = {
        n: Blob(name_of(np.ascontiguousarray(a, "<f4").tobytes()), a.shape, a.nbytes)
        for n, a in state.items()
    }
    return state_digest(blobs)
