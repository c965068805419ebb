"""What `hansa charter` and `hansa seed` do: a charter to start from, its check and signatures, its seed model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commons import charter_file
from commons.accounting import Rate
from commons.charter import Charter, Model
from commons.cosignature import WITNESSES_MAX
from commons.errors import ConfigError, HansaError, Refusal, Refused, StoreError
from commons.experts.map import model_problems
from commons.experts.tokenizer import FILE, Tokenizer, byte_tokenizer
from commons.founding import Founding, check_founding
from commons.identity import load_signer, write_file
from commons.learning import SEQUENCE_MIN, Codecs, Learning, Outer
from commons.names import Digest
from commons.records import canonical_json
from commons.written import money
from hansa import tokenizers
from hansa.keys import read_public
from hansa.models import MODELS, USUAL, of_checkpoint

NOTE = ".note"
CONTINUED: dict[str, Any] = {"learning_rate": 1e-4, "sequence_length": 1024}
"""Of a model that has learned already: what suits random weights would undo it."""
CPU_PEAK_GFLOPS = 20_000
"""Above what a server with two large processors reaches in fp32; usage that claims more is refused."""


@dataclass(frozen=True)
class Checked:
    """A charter that is sound, and who has signed it."""

    charter: Charter
    digest: Digest
    signed: tuple[str, ...]
    unsigned: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        return {
            "valid": True,
            "consortium": self.charter.consortium.name,
            "version": self.charter.version,
            "digest": self.digest,
            "signed": list(self.signed),
            "unsigned": list(self.unsigned),
        }


def new_charter(
    file: Path,
    *,
    log_key: Path,
    members: Sequence[Path],
    funders: Sequence[Path],
    budget_micro: int,
    rounds: int,
    inner_steps: int,
    model: str = USUAL,
    tokenizer: Path | None = None,
    end: str = "",
    checkpoint: Path | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """Write a charter in which each of `members` has a site of two experts and pays for it; its JSON form.

    The first funder, if any, pays for the last site. `tokenizer` is put beside it, `end` ends its documents. `checkpoint`: a
    Hugging Face folder whose model and tokenizer it is, its experts dealt to the sites in order, or as many of them for
    each site (`whole`). Raises StoreError when the file exists, HansaError for a `model` that is none of
    `hansa.models.MODELS`, and for a tokenizer or a checkpoint that no run can use.
    """
    if file.exists():
        raise StoreError(f"{file} exists and was left as it is; edit it, or choose another name")
    tokenizer = checkpoint / FILE if checkpoint and tokenizer is None else tokenizer
    described, data = _tokenizer(tokenizer, end)
    if whole and checkpoint is None:
        raise HansaError("--whole gives each site all experts of a --checkpoint; name one")
    chosen, experts = _model(model, described, checkpoint, 2 * len(members))
    experts *= len(members) if whole else 1
    log, sited, funding = (
        read_public(log_key),
        [read_public(p) for p in members],
        [read_public(p) for p in funders],
    )
    payers = {v.name: v.name for v in sited}
    if funding:
        payers[sited[-1].name] = funding[0].name
    document = template(
        consortium=log.name, log_key=log.vkey, learning={"rounds": rounds, "inner_steps": inner_steps},
        model=model,
        members=[{"name": v.name, "key": v.vkey, "budget_micro": budget_micro} for v in (*sited, *funding)],
        sites=[
            site_entry(v.name, payer=payers[v.name], domain=v.name, statement="say here where the text comes from")
            | {"experts": _experts(v.name, n, len(sited), experts)}
            for n, v in enumerate(sited)
        ],
    )  # fmt: skip
    document["model"] = chosen
    if checkpoint:
        length = min(
            CONTINUED["sequence_length"], chosen["config"].get("max_position_embeddings", SEQUENCE_MIN)
        )
        document["learning"] |= CONTINUED | {"sequence_length": length}
    if data:
        tokenizers.put_beside(file, data)
    charter = Charter.model_validate_json(canonical_json(document))
    charter_file.write(charter, file)
    return charter.model_dump(mode="json")


def _tokenizer(file: Path | None, end: str) -> tuple[Tokenizer, bytes]:
    """As a charter names it, and its bytes: of none, as of one whose tokens are bytes, none are put beside the charter."""
    if file is None or (file.exists() and file.read_bytes() == byte_tokenizer()):
        return Tokenizer(), b""
    return tokenizers.describe(file, end)


def _model(
    name: str, tokenizer: Tokenizer, checkpoint: Path | None, experts: int
) -> tuple[dict[str, Any], int]:
    """The charter's `[model]`, and how many experts it has."""
    if checkpoint is not None:
        model, experts = of_checkpoint(checkpoint)
    elif name in MODELS:
        model = MODELS[name]
        if tokenizer.file:
            model = model | {"config": model["config"] | {"vocab_size": tokenizer.tokens}}
    else:
        raise HansaError(f"there is no model {name[:64]!r} to start from; choose one of {', '.join(MODELS)}")
    return model | {"tokenizer": tokenizer.model_dump()}, experts


def _experts(partner: str, number: int, sites: int, experts: int) -> list[str]:
    """Of the site with this number, from 0: as many as the others have, or one more."""
    if experts < sites:
        raise HansaError(f"a model of {experts} experts cannot be shared by {sites} sites; each needs one")
    count = experts // sites + (number < experts % sites)
    letters = [chr(ord("a") + n) for n in range(count)] if count <= 26 else [f"{n:03d}" for n in range(count)]
    return [f"{partner}-{letter}" for letter in letters]


def template(
    *,
    consortium: str,
    log_key: str,
    members: list[dict[str, Any]],
    sites: list[dict[str, Any]],
    learning: dict[str, Any],
    model: str = USUAL,
) -> dict[str, Any]:
    """A charter as data: one of `hansa.models.MODELS`, prices, rules.

    As many sites must have seen the journal as a majority has, but never more than a round needs.
    """
    quorum = max(1, len(sites) - 1)
    return {
        "version": 1,
        "consortium": {"name": consortium, "log_key": log_key},
        "members": members,
        "sites": sites,
        "model": MODELS[model],
        "learning": {
            "batch_size": 8,
            "sequence_length": 64,
            "learning_rate": 0.003,
            "warmup_steps": 10,
        }
        | learning,
        "rounds": {"quorum": quorum, "grace_s": 60, "lease_s": 600},
        "rate_card": {
            "currency": "EUR",
            "rates": [
                {
                    "device": "cpu",
                    "micro_per_gflop": 1000,
                    "micro_per_device_second": 0,
                    "peak_gflops": CPU_PEAK_GFLOPS,
                }
            ],
        },
        "voting": {"window_s": 3600, "quorum_percent": 50, "pass_percent": 50},
        "release": {"licence": "Apache-2.0"},
        "witnesses": {"quorum": min(len(sites) // 2 + 1, quorum, WITNESSES_MAX)},
    }


def site_entry(partner: str, *, payer: str, domain: str, statement: str) -> dict[str, Any]:
    """One site of a partner, with two experts."""
    return {
        "name": f"{partner}-site",
        "partner": partner,
        "payer": payer,
        "domain": domain,
        "experts": [f"{partner}-a", f"{partner}-b"],
        "device": "cpu",
        "data_statement": statement,
    }


def check_charter(file: Path, founding: Path) -> Checked:
    """Raises ConfigError with every problem of the file, or of a signature in `founding` that does not hold, HansaError
    where its tokenizer is not beside it or none that a run can use."""
    charter = load_charter(file)
    tokenizers.check_beside(file, charter)
    digest = charter_file.digest(charter)
    signed: list[str] = []
    for note in sorted(founding.glob(f"*{NOTE}")) if founding.is_dir() else []:
        match check_founding(note.read_bytes(), charter, digest):
            case Refusal() as refusal:
                raise ConfigError([f"{note}: {refusal.message}"])
            case member:
                signed.append(member)
    names = [m.name for m in charter.members]
    return Checked(
        charter, digest, tuple(n for n in names if n in signed), tuple(n for n in names if n not in signed)
    )


def sign_charter(file: Path, key: Path, founding: Path) -> tuple[Path, Digest]:
    """Write `founding/MEMBER.note`; the note's path and the charter's digest."""
    charter, signer = load_charter(file), load_signer(key)
    tokenizers.check_beside(file, charter)
    member = charter.member(signer.name)
    if member is None or member.key != signer.vkey:
        named = ", ".join(m.name for m in charter.members)
        raise HansaError(f"{key} is no key of a member of {file} ({named}); put its public key there first")
    digest = charter_file.digest(charter)
    data = signer.sign(Founding(charter.consortium.name, digest, member.name).compose())
    if isinstance(refusal := check_founding(data, charter, digest), Refusal):
        raise Refused(refusal)
    note = founding / f"{member.name}{NOTE}"
    write_file(note, data)
    return note, digest


def founders(charter: Charter, notes: Iterable[bytes]) -> set[str]:
    """Who signed this charter. Raises ValueError for a note that does not hold."""
    found = set()
    digest = charter_file.digest(charter)
    for note in notes:
        match check_founding(note, charter, digest):
            case Refusal() as refusal:
                raise ValueError(refusal.message)
            case member:
                found.add(member)
    return found


def read_charter(file: Path | None, seat: Path) -> tuple[Charter, Digest]:
    """A file's charter, or the one in force as the seat's coordinator states it."""
    if file is not None:
        charter = load_charter(file)
        return charter, charter_file.digest(charter)
    from commons.views import CharterView
    from hansa.chamber import Chamber

    with Chamber.at(seat) as chamber:
        view = chamber.read(CharterView)
    charter = charter_file.from_canonical(view.text.encode())
    return charter, charter_file.digest(charter)


def charter_text(charter: Charter, digest: Digest) -> list[str]:
    """For a person: who, what, how much, under which rules."""
    c, learning, codecs = charter, charter.learning, charter.learning.codecs
    rates = ", ".join(_rate(rate, c.rate_card.currency) for rate in c.rate_card.rates)
    lines = [f"{c.consortium.name}, charter version {c.version} ({digest})", "", "Members"]
    lines += [f"  {m.name}: budget {money(m.budget_micro, c.rate_card.currency)}" for m in c.members]
    lines.append("Sites")
    for site in c.sites:
        payer = "" if site.payer == site.partner else f", paid for by {site.payer}"
        lines.append(
            f"  {site.name} of {site.partner}: text {site.domain!r}, experts {', '.join(site.experts)}{payer}"
        )
    return [
        *lines,
        f"Model: {c.model.family}, {len(c.experts)} experts{_read(c.model)}, {_tokens(c.model.tokenizer)}",
        f"Run: {_rounds(learning)}, {learning.strategy}, {learning.routing} routing{_inner(learning)}",
        f"Sent: {_sent(codecs)}",
        f"Price: {rates}",
        f"A round closes with {c.rounds.quorum} updates after {c.rounds.grace_s} s grace",
        f"Witnesses that must have seen the journal: {c.witnesses.quorum or 'none'}",
        f"A vote needs {c.voting.quorum_percent} % turnout and more than {c.voting.pass_percent} % for it",
        f"Features voted in: {', '.join(k for k, on in c.features.items() if on) or 'none'}",
    ]


def _read(model: Model) -> str:
    read = f", chosen by readers of width {model.reader}" if model.reader else ""
    own = f", the trunk from layer {model.own_from} on each site's own" if model.own_from is not None else ""
    return f"{read}{own}"


def _tokens(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.tokens} tokens of {tokenizer.file}" if tokenizer.file else "tokens are bytes"


def _rounds(learning: Learning) -> str:
    warm = (
        f", the first {learning.warm.rounds} of {learning.warm.inner_steps}" if learning.warm.rounds else ""
    )
    return f"{learning.rounds} rounds of {learning.inner_steps} steps{warm}"


def _inner(learning: Learning) -> str:
    """How a step is made and updates are combined, where that is not what it is without a word."""
    said = {
        "Muon": learning.inner_optimizer == "muon",
        f"{learning.precision} where GPUs have it": learning.precision != "fp32",
        "radial merge": learning.merge == "radial",
        "an outer step for experts": learning.expert_outer != Outer(),
        "weights by routed tokens": learning.expert_weights == "routed",
        f"balancing by {learning.balance_rate:g} a round": learning.balance_rate > 0,
    }
    return "".join(f", {what}" for what, so in said.items() if so)


def _sent(codecs: Codecs) -> str:
    """Trunk and experts; the rest where it differs from what it is without a word."""
    named = {
        "norms": codecs.vector,
        "router": codecs.router,
        "last round": codecs.closing,
        "new state as a step": None if codecs.down == "fp32" else codecs.down,
    }
    others = "".join(f", {what} {codec}" for what, codec in named.items() if codec)
    return f"trunk {codecs.trunk}, experts {codecs.expert}{others}"


def _rate(rate: Rate, currency: str) -> str:
    prices = (
        (rate.micro_per_gflop, "GFLOP"),
        (rate.micro_per_pflop, "PFLOP"),
        (rate.micro_per_device_second, "second"),
    )
    said = " and ".join(f"{money(micro, currency)} per {unit}" for micro, unit in prices if micro)
    at = "" if rate.precision == "any" else f" at {rate.precision}"
    return f"{said or 'nothing'} on {rate.device}{at}"


def load_charter(file: Path) -> Charter:
    if not file.exists():
        raise ConfigError([f"{file}: there is no such file; write one with `hansa charter new {file}`"])
    return charter_file.load(file, further=model_problems)


def schema_text() -> str:
    """The published JSON schema of the charter."""
    return json.dumps(charter_file.schema(), indent=2, ensure_ascii=False) + "\n"
