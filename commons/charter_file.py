"""The charter as a file and as bytes: TOML for people, canonical JSON for signatures.

Owns reading, writing, digest and difference of charters. The schema is `commons.charter`; whose votes may
change one is `commons.features` and `commons.chain`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import ValidationError
from tomlkit.items import AoT, Table

from commons import notes, toml_file
from commons.charter import Charter
from commons.cosignature import Cosignatory
from commons.names import Digest
from commons.records import LEAF_BYTES_MAX, canonical_json
from commons.section import WHOLE
from commons.toml_file import Problem
from commons.toml_lines import KeyPath

CHARTER_BYTES_MAX = LEAF_BYTES_MAX - 64
"""The whole charter is one journal record."""


def load(path: Path, *, further: Callable[[Charter], Iterable[Problem]] = lambda _: ()) -> Charter:
    """The charter in a TOML file. Raises ConfigError listing every problem as ``path:line: key: what``.

    `further` finds problems in a document that is valid as such (`commons.experts.map.model_problems`).
    """

    def every(charter: Charter) -> Iterable[Problem]:
        return (*_problems(charter), *further(charter))

    return toml_file.load(path, Charter, further=every, stand_ins=_STAND_INS, place=_place)


def problems(charter: Charter) -> list[str]:
    """What a valid document still gets wrong: keys that are no keys or not their owner's, size."""
    return [f"{'.'.join(map(str, p.path))}: {p.what}" for p in _problems(charter)]


def canonical(charter: Charter) -> bytes:
    """The one JSON text of this charter: what founders sign and the journal records."""
    return canonical_json(charter.model_dump(mode="json"))


def digest(charter: Charter) -> Digest:
    return notes.digest(canonical(charter))


def from_canonical(data: bytes) -> Charter:
    """Read `canonical` back. Raises ValueError when it is no charter, or another writing of one."""
    try:
        charter = Charter.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"not a charter: {where or 'document'}: {first['msg']}") from error
    if canonical(charter) != data:
        raise ValueError("not the canonical JSON of a charter")
    return charter


def diff(old: Charter, new: Charter) -> list[tuple[str, Any, Any]]:
    """What differs, as (JSON pointer, old value, new value) in document order; None where there is none."""
    return list(_diff("", document(old), document(new)))


def document(charter: Charter) -> dict[str, Any]:
    """Every field, also those `canonical` leaves out: what a feature's patch applies to."""
    return charter.model_dump(mode="json", context=WHOLE)


def schema() -> dict[str, Any]:
    """JSON schema of the charter."""
    return Charter.model_json_schema()


def write(charter: Charter, path: Path) -> None:
    """Write the charter as commented TOML, with its folder; an existing file is replaced whole or not at all.

    `load` of the file gives an equal charter.
    """
    document = tomlkit.document()
    document.add(tomlkit.comment(f"Charter of the consortium {charter.consortium.name}."))
    document.add(
        tomlkit.comment("Every founder signs exactly these values; later versions follow from votes.")
    )
    for name, value in charter.model_dump(mode="json").items():
        document.add(tomlkit.nl())
        if comment := _COMMENTS.get(name):
            document.add(tomlkit.comment(comment))
        document.add(name, _item((name,), value))
    text = re.sub(r"\n{3,}", "\n\n", tomlkit.dumps(document))
    text = re.sub(r"^(# .*\n)\n(?=\[)", r"\1", text, flags=re.MULTILINE)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _item(path: tuple[str, ...], value: Any) -> Any:
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        tables: AoT = tomlkit.aot()
        for number, inner in enumerate(value):
            tables.append(_table(path, inner, commented=number == 0))
        return tables
    return _table(path, value, commented=True) if isinstance(value, dict) else value


def _table(path: tuple[str, ...], values: Mapping[str, Any], *, commented: bool) -> Table:
    """Plain values first: a key written after a sub-table would belong to it."""
    table = tomlkit.table()
    for key in sorted(values, key=lambda k: _is_table(values[k])):
        inner = (*path, key)
        made, comment = _item(inner, values[key]), _COMMENTS.get(".".join(inner))
        if commented and comment and not _is_table(values[key]):
            made = tomlkit.item(made).comment(comment)
        table.add(key, made)
    return table


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _diff(at: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            step = key.replace("~", "~0").replace("/", "~1")
            yield from _diff(f"{at}/{step}", old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list):
        for number in range(max(len(old), len(new))):
            before = old[number] if number < len(old) else None
            after = new[number] if number < len(new) else None
            yield from _diff(f"{at}/{number}", before, after)
    elif type(old) is not type(new) or old != new:
        yield at, old, new


def _problems(charter: Charter) -> Iterable[Problem]:
    size = len(canonical(charter))
    if size > CHARTER_BYTES_MAX:
        yield Problem(
            (), f"the charter takes {size} bytes, at most {CHARTER_BYTES_MAX} (shorten data statements)"
        )
    owners: dict[bytes, str] = {}
    keys: list[tuple[KeyPath, str, str, str]] = [
        (("consortium", "log_key"), "the journal", charter.consortium.name, charter.consortium.log_key)
    ]
    keys += [
        (("members", number, "key"), f"member {m.name}", m.name, m.key)
        for number, m in enumerate(charter.members)
    ]
    for path, owner, name, vkey in keys:
        try:
            verifier = notes.Verifier.from_vkey(vkey)
        except notes.NoteError as error:
            yield Problem(path, f"{error} (paste the line that `hansa key new` printed)")
            continue
        if verifier.name != name:
            yield Problem(
                path, f"this key goes by {verifier.name!r}, expected {name!r} (make one for {name})"
            )
        if verifier.public in owners:
            yield Problem(
                path, f"this is also the key of {owners[verifier.public]} (each needs a key of its own)"
            )
        owners[verifier.public] = owner
    yield from _outsiders_problems(charter, owners)


def _outsiders_problems(charter: Charter, owners: dict[bytes, str]) -> Iterable[Problem]:
    """`owners`: public keys that are somebody's; grows."""
    names = {f"{site.partner}/{site.name}": f"site {site.name}" for site in charter.sites}
    for number, outsider in enumerate(charter.witnesses.outsiders):
        path = ("witnesses", "outsiders", number, "vkey")
        try:
            witness = Cosignatory.from_vkey(outsider.vkey)
        except notes.NoteError as error:
            yield Problem(path, f"{error} (paste the witness key its operator published)")
            continue
        if taken := owners.get(witness.public):
            yield Problem(path, f"this is also the key of {taken} (a quorum counts each witness once)")
        elif taken := names.get(witness.name):
            yield Problem(path, f"this key goes by the name of {taken} (a quorum counts each witness once)")
        owners[witness.public] = names[witness.name] = f"outsider {outsider.name}"


def _place(what: str, data: Mapping[str, Any]) -> KeyPath:
    """The key a cross-rule of the charter speaks of: ``rounds.quorum``, or the newest table of that name."""
    if found := re.match(r"([a-z_]+(?:\.[a-z_]+)+) is ", what):
        return tuple(found[1].split("."))
    if found := re.match(r"outsider '([^']*)'", what):
        outsiders = list(enumerate(data["witnesses"]["outsiders"]))
        number = next(n for n, table in reversed(outsiders) if table.get("name") == found[1])
        return ("witnesses", "outsiders", number, "name")
    if found := re.match(r"(member|site|expert) '([^']*)' ?(.*)", what):
        kind, name, rest = found.groups()
        section = "members" if kind == "member" else "sites"
        tables = list(enumerate(data.get(section, [])))
        for number, table in reversed(tables):
            if kind == "expert" and name in table.get("experts", ()):
                return (section, number, "experts")
            if kind != "expert" and table.get("name") == name:
                role = re.match(r"names (\w+)|runs on", rest)
                return (section, number, ((role[1] or "device") if role else "name"))
    return ()


_STAND_INS: dict[tuple[str, ...], Any] = {
    ("version",): 1,
    ("consortium",): {"name": "x", "log_key": "x"},
    ("model",): {"family": "glm4_moe", "config": {}},
    ("learning",): {
        "rounds": 1,
        "inner_steps": 1,
        "batch_size": 1,
        "sequence_length": 8,
        "learning_rate": 0.1,
    },
    ("rounds",): {"quorum": 1, "grace_s": 1, "lease_s": 1},
    ("rate_card", "currency"): "EUR",
    ("rate_card", "rates", "micro_per_gflop"): 1,
    ("voting",): {"window_s": 1},
    ("release",): {"licence": "x"},
    ("features",): {},
    ("witnesses",): {},
    ("privacy",): {},
    ("probe",): {},
    ("rollback",): {},
    ("contribution",): {},
    ("members", "key"): "x",
    ("members", "budget_micro"): 0,
    ("sites", "domain"): "x",
    ("sites", "data_statement"): "x",
}
"""Valid values that no cross-rule reads, put in for broken ones while the cross-rules are checked."""

_COMMENTS = {
    "version": "1 is signed by all founders; each executed proposal adds one.",
    "members": "Partners with a say. A member without a site funds the work of others.",
    "members.key": "public; its private half signs charter, proposals and ballots",
    "members.budget_micro": "granted at the start, in 1e-6 of the currency",
    "sites": "Places that compute. A site's text never leaves it.",
    "sites.payer": "whose budget is charged: a sponsor when it is not the partner",
    "sites.domain": "name of its text in the tables",
    "sites.experts": "the routed experts this site owns",
    "sites.device": "priced by the rate card",
    "sites.data_statement": "origin and licence of the text, published with each release",
    "consortium.log_key": "public key of the coordinator's journal",
    "model": "A Hugging Face family and its configuration; experts come from the sites.",
    "model.reader": "width of each site's reader, which finds the experts for a text; 0: none",
    "model.own_from": "first decoder layer whose trunk is each site's own; none: all is shared",
    "model.tokenizer": "Fixed at the founding; without it tokens are bytes.",
    "model.tokenizer.file": "SHA-256 of a tokenizer.json",
    "model.tokenizer.tokens": "ids are below this",
    "model.tokenizer.end": "id of the token that ends a document",
    "learning": "How the model is trained; features voted on change values here.",
    "learning.routing": "joint: frozen guest experts beside one's own; lean: own experts only",
    "learning.inner_steps": "per round, between two exchanges",
    "learning.strategy": "expert_diloco: the trunk is shared; sovereign, diloco, branch_mix: see training.md",
    "learning.owned_every": "rounds from one exchange of experts, readers, own layers to the next",
    "learning.warm.rounds": "the run's first rounds, of so many inner_steps",
    "learning.merge": "mean; radial: mean direction and mean length, for matrices",
    "learning.expert_weights": "alike; routed: by the tokens routed to an expert",
    "learning.balance_rate": "by which selection biases move a round; 0: they stay",
    "learning.final_rate": "cosine floor as a share of learning_rate",
    "learning.public_share": "share of each batch drawn from the public text",
    "learning.inner_optimizer": "adamw; muon: for the matrices of trunk and experts",
    "learning.precision": "of matrix products: fp32; bf16: on GPUs that have it",
    "learning.norm_gate": "an update this many times the median's norm is rejected",
    "rounds": "When a round closes.",
    "rounds.quorum": "updates needed before a round may close without the others",
    "rounds.grace_s": "wait for the rest after the quorum",
    "rounds.lease_s": "longest time one site may take for one round",
    "rounds.grace": "fixed; adaptive: as long as the others' time says, and only for sites at work",
    "rounds.grace_percent": "adaptive: of the median time the others needed",
    "rounds.grace_least_s": "adaptive: at least; at most grace_s",
    "rounds.late_rounds": "rounds later that an update still counts",
    "rounds.late_discount": "weight of a late update, for each round it is late",
    "rate_card": "What compute costs.",
    "voting": "Rules of each ballot, frozen when it opens.",
    "voting.window_s": "closes earlier once all have voted",
    "voting.quorum_percent": "of all votes must be cast; abstaining counts",
    "voting.pass_percent": "more than this share of for and against must be for",
    "release": "Terms of the released model.",
    "release.licence": "SPDX identifier",
    "release.seed_beside": "the run's seed is released beside the model, for text that this reads worse",
    "features": "Switched on by executed proposals.",
    "witnesses": "Who must have seen the journal before a site trusts it; every site is a witness.",
    "witnesses.quorum": "cosignatures a checkpoint of the journal needs; 0: none",
    "witnesses.outsiders": "witnesses that are no site, asked over HTTP",
    "witnesses.outsiders.vkey": "public cosignature key of the witness",
    "witnesses.outsiders.url": "asked at URL/add-checkpoint",
    "privacy": "What keeps the sites' updates from each other, or wrong ones from the model.",
    "privacy.mode": "none, robust, secagg or dp",
    "privacy.robust.rule": "norm_clip, trimmed_mean, median, krum, multi_krum or centred_clip",
    "privacy.robust.faulty": "updates of a round that may be wrong",
    "privacy.secagg.clip": "values beyond this magnitude are cut to it",
    "privacy.secagg.minimum": "updates a sum is taken of, at the least",
    "privacy.secagg.threshold": "sites that must help to open a sum; 0: above two thirds",
    "privacy.dp.clip_norm": "longest L2 norm of an update",
    "privacy.dp.noise_multiplier": "deviation of the noise, in clip_norm",
    "privacy.dp.delta": "epsilon is counted at this delta",
    "privacy.dp.epsilon_max": "what one site may spend over all its runs and rounds",
    "privacy.dp.slices": "shared: trunk and router leave noised; all: own experts too",
    "probe": "A public text that lies at every site, on which each round's state is measured.",
    "probe.text": "SHA-256 of the file; empty: nothing is measured",
    "probe.domains": "of sites, in order: the file is cut into a piece for each",
    "probe.rows": "windows of sequence_length tokens that are read of it",
    "probe.patience_s": "longest wait for the measurements of one state",
    "rollback": "What becomes of a state that is worse on the probe.",
    "rollback.rise_percent": "a rise up to this is never harm",
    "rollback.sigmas": "nor one within so many deviations of recent rounds' changes",
    "rollback.drag_percent": "appraised rounds: better by more than this without an update, it is left out; 0: never",
    "rollback.drag_memory": "share of the sum over a site's appraisals that stays; 0: the last alone",
    "rollback.quarantine_rounds": "for which a site stays out whose update did the harm",
    "contribution": "What single updates and experts are worth on the probe.",
    "contribution.every": "rounds between two measurements; 0: never",
}
