"""The charter: the one governed document of a consortium, as typed values.

Owns the schema and its cross-field rules. Knows nothing of files, signatures or votes
(`commons.charter_file` reads and signs it, `commons.features` changes it).
Field names are the TOML keys. Sizes are bounded here so that no later code has to.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from commons.accounting import Accounting, Grant, RateCard, Ruling
from commons.experts.added import Added
from commons.experts.settings import Value
from commons.experts.tokenizer import Tokenizer
from commons.experts.tokenizer import conflicts as tokenizer_conflicts
from commons.judging import Contribution, Probe, Rollback, unjudgeable
from commons.learning import Learning
from commons.privacy.terms import Privacy, conflicts
from commons.section import Micros, Name, Section
from commons.strategies import conflicts as learning_conflicts
from commons.voting import Voting
from commons.witnessed import Witnesses


class Consortium(Section):
    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9.-]{0,63}$")]
    log_key: str
    """The journal's verifier key (C2SP vkey); the founders sign it with the charter."""


class Member(Section):
    LATER: ClassVar[frozenset[str]] = frozenset({"group", "suspended"})

    name: Name
    key: str
    """The partner's Ed25519 verifier key (C2SP vkey); it signs charter, proposals and ballots."""
    budget_micro: Micros
    """Compute budget granted when the charter takes effect."""
    group: Annotated[str, Field(pattern=r"^([a-z][a-z0-9-]{0,31})?$")] = ""
    """Members of one owner name the same group, whose ballots weigh a third at most; empty: its own name."""
    suspended: bool = False
    """It neither votes nor counts until the members readmit it, and its sites get no orders."""


class Site(Section):
    LATER: ClassVar[frozenset[str]] = frozenset({"devices"})

    name: Name
    partner: Name
    payer: Name
    """The member whose budget is charged; a sponsor when it differs from `partner`."""
    domain: Name
    experts: Annotated[tuple[Name, ...], Field(min_length=1, max_length=256)]
    device: Name
    """What the site computes on; the rate card has its price."""
    devices: Annotated[int, Field(ge=1, le=4096)] = 1
    """How many of them may work at the same time."""
    data_statement: Annotated[str, Field(min_length=1, max_length=2000)]
    """Origin and licence of the site's text, published with every release."""


class Model(Section):
    """The model all partners train: a Hugging Face family and its configuration."""

    LATER: ClassVar[frozenset[str]] = frozenset({"reader", "own_from", "tokenizer"})

    family: Literal["glm4_moe", "llama4_text", "deepseek_v3", "qwen3_moe", "mixtral", "olmoe", "flex_olmo"]
    config: dict[str, Value]
    """Keys of the family's Hugging Face config; the number of experts is the number of owned experts."""
    reader: Annotated[int, Field(ge=0, le=4096)] = 0
    """Width of each site's reader, by which a site's experts are chosen for a text (`commons.experts.readers`). 0: there
    are none, and experts are chosen by the learned router."""
    own_from: Annotated[int, Field(ge=0, le=4096)] | None = None
    """The first decoder layer whose trunk every site has for itself (`commons.experts.own`). None: sites share it all."""
    tokenizer: Tokenizer = Tokenizer()

    @property
    def shared(self) -> Model:
        """The same without what sites have beside their experts: as one place would train it, and as transformers loads it."""
        return self.model_copy(update={"reader": 0, "own_from": None})


class Rounds(Section):
    LATER: ClassVar[frozenset[str]] = frozenset(
        {"grace", "grace_percent", "grace_least_s", "late_rounds", "late_discount", "paused"}
    )

    quorum: Annotated[int, Field(ge=1, le=1024)]
    """Updates that must be admitted before a round may close without the others."""
    grace_s: Annotated[int, Field(ge=0, le=86_400)]
    """How long a round waits for the rest after the quorum is met; adaptive, at most."""
    lease_s: Annotated[int, Field(ge=1, le=604_800)]
    """How long one site may take for one round; its hold expires with it."""
    grace: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive`: only for sites seen at work, and as long as follows from what the others needed."""
    grace_percent: Annotated[int, Field(ge=1, le=1000)] = 50
    """Adaptive: share of the median time the admitted sites needed from their order to their admission."""
    grace_least_s: Annotated[int, Field(ge=0, le=86_400)] = 1
    """Adaptive: never less than this, and never more than `grace_s`."""
    late_rounds: Annotated[int, Field(ge=0, le=16)] = 0
    """How many rounds later an update still counts that was under way when its own closed. 0: none does."""
    late_discount: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A late update's weight in shared slices is multiplied by this once for each round it is late."""
    paused: bool = False
    """No further round opens until the members vote to resume."""


class Release(Section):
    LATER: ClassVar[frozenset[str]] = frozenset({"seed_beside"})

    licence: Annotated[str, Field(min_length=1, max_length=64)]
    """SPDX identifier of the released model."""
    seed_beside: bool = False
    """Whether a run's seed is released beside the model, for text that this reads worse (`hansa.beside`)."""


Sha256 = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Released(Section):
    """A model that the members voted to release. It moves the alias to this manifest."""

    manifest: Sha256
    alias: Name
    licence: Annotated[str, Field(min_length=1, max_length=64)]
    """SPDX identifier."""
    gates: Sha256
    """Digest of the gates' configuration and results, so that no threshold is eased after the vote opened."""
    audience: Annotated[str, Field(min_length=1, max_length=200)] = "public"


_NEVER_LATE = {
    "secagg": "a masked update opens only together with the others of its own round",
    "robust": "its rules compare updates of one base and allow for so many bad sites, each with one update",
}
"""Privacy modes that take no late updates, and why."""


class Charter(Section):
    """The whole document. `version` 1 is signed by every founder; later ones follow from executed proposals."""

    LATER: ClassVar[frozenset[str]] = frozenset(
        {
            "accounting",
            "added",
            "contribution",
            "escrow",
            "grants",
            "privacy",
            "probe",
            "releases",
            "retired",
            "rollback",
            "rulings",
            "witnesses",
        }
    )

    version: Annotated[int, Field(ge=1)]
    consortium: Consortium
    members: Annotated[tuple[Member, ...], Field(min_length=1, max_length=256)]
    sites: Annotated[tuple[Site, ...], Field(min_length=1, max_length=1024)]
    model: Model
    learning: Learning
    rounds: Rounds
    rate_card: RateCard
    voting: Voting
    release: Release
    features: dict[Name, bool] = Field(default_factory=dict)
    """Features switched on by executed proposals (see `commons.features`)."""
    accounting: Accounting = Accounting()
    grants: Annotated[tuple[Grant, ...], Field(max_length=1024)] = ()
    rulings: Annotated[tuple[Ruling, ...], Field(max_length=1024)] = ()
    witnesses: Witnesses = Witnesses()
    privacy: Privacy = Privacy()
    releases: Annotated[tuple[Released, ...], Field(max_length=1024)] = ()
    """In the order they were voted; the last one of an alias is what it names."""
    probe: Probe = Probe()
    rollback: Rollback = Rollback()
    contribution: Contribution = Contribution()
    added: Annotated[tuple[Added, ...], Field(max_length=1024)] = ()
    escrow: Annotated[tuple[Name, ...], Field(max_length=1024)] = ()
    """Experts of the model whose site has left: the coordinator holds them as they were, and nobody trains them."""
    retired: Annotated[tuple[Name, ...], Field(max_length=1024)] = ()
    """Experts that are gone for good. No other goes by such a name, so that nobody takes one for the other."""

    @model_validator(mode="after")
    def _refers_only_to_what_it_names(self) -> Charter:
        if problems := list(self._inconsistencies()):
            raise ValueError("; ".join(problems))
        return self

    def _inconsistencies(self) -> list[str]:
        members = [m.name for m in self.members]
        devices = {r.device for r in self.rate_card.rates}
        found = [*self._named_twice(), *self._odd_experts()]
        for site in self.sites:
            for role in ("partner", "payer"):
                if getattr(site, role) not in members:
                    found.append(f"site {site.name!r} names {role} {getattr(site, role)!r}, who is no member")
            if site.device not in devices:
                found.append(f"site {site.name!r} runs on {site.device!r}, which has no rate")
        found += self._impossible_rounds()
        witnesses = len(self.sites) + len(self.witnesses.outsiders)
        if self.witnesses.quorum > witnesses:
            found.append(
                f"witnesses.quorum is {self.witnesses.quorum} but there are {witnesses} sites and outsiders"
            )
        found += [
            *self._vain_grants(),
            *self._voteless(),
            *self._unpriced_precisions(),
            *self._idle_readers(),
            *self._unread_layers(),
            *tokenizer_conflicts(self.model.tokenizer),
        ]
        if self.learning.since is not None and self.version == 1:
            found.append("learning.since is set but no vote has changed this charter")
        found += learning_conflicts(self.learning, self.privacy, late_rounds=self.rounds.late_rounds)
        terms = (self.probe, self.rollback, self.contribution)
        found += unjudgeable(*terms, self.learning.sequence_length, mode=self.privacy.mode)
        return found + self._unkeepable_privacy()

    def _unkeepable_privacy(self) -> list[str]:
        codecs = dict(self.learning.codecs)
        owned = ("down", "closing") if self.learning.strategy == "diloco" else ("expert", "down", "closing")
        return conflicts(
            self.privacy,
            sites=len(self.sites),
            quorum=self.rounds.quorum,
            expert_codec=codecs["expert"],
            shared_codecs={k: c for k, c in codecs.items() if k not in owned and c is not None},
        )

    def _impossible_rounds(self) -> list[str]:
        found = []
        if self.rounds.quorum > len(self.sites):
            found.append(f"rounds.quorum is {self.rounds.quorum} but there are {len(self.sites)} sites")
        if self.rounds.grace == "adaptive" and self.rounds.grace_least_s > self.rounds.grace_s:
            found.append(
                f"rounds.grace_least_s is {self.rounds.grace_least_s} but a round waits at most "
                f"{self.rounds.grace_s} s (grace_s)"
            )
        if self.rounds.late_rounds and (why := _NEVER_LATE.get(self.privacy.mode)):
            found.append(
                f"rounds.late_rounds is {self.rounds.late_rounds} but privacy.mode is {self.privacy.mode!r}: {why}"
            )
        return found

    def _named_twice(self) -> list[str]:
        named = (
            ("member", [m.name for m in self.members]),
            ("site", [s.name for s in self.sites]),
            ("expert", [*self.experts]),
            ("rate", [f"{r.device} {r.precision}" for r in self.rate_card.rates]),
            ("grant", [g.name for g in self.grants]),
            ("ruling on", [r.dispute for r in self.rulings]),
            ("outsider", [o.name for o in self.witnesses.outsiders]),
            ("release of", [f"{r.manifest} as {r.alias}" for r in self.releases]),
            *self.voting.named,
            ("added expert", [a.expert for a in self.added]),
            ("retired expert", [*self.retired]),
        )
        return [
            f"{what} {name!r} is named twice"
            for what, names in named
            for name in sorted({n for n in names if names.count(n) > 1})
        ]

    def _odd_experts(self) -> list[str]:
        strange = [a.expert for a in self.added if a.expert not in self.experts]
        back = [e for e in self.retired if e in self.experts]
        return [
            *(f"added names {e!r}, which no site owns and which is not in escrow" for e in strange),
            *(f"expert {e!r} was retired; another needs a name of its own" for e in back),
        ]

    def _vain_grants(self) -> list[str]:
        members = [m.name for m in self.members]
        expired = [g for g in self.grants if 0 < g.expires_ms <= g.not_before_ms]
        return [f"grant {g.name!r} expires before it begins" for g in expired] + [
            f"grant {g.name!r} is for {g.member!r}, who is no member"
            for g in self.grants
            if g.member not in members
        ]

    def _voteless(self) -> list[str]:
        """Officers who are no members, and a charter that nobody could ever change."""
        members = [m.name for m in self.members]
        strangers = [name for name in self.voting.officers if name not in members]
        found = [f"voting.officers names {name!r}, who is no member" for name in strangers]
        if all(member.suspended for member in self.members):
            found.append("every member is suspended: nobody could ever vote again")
        return found

    def _unpriced_precisions(self) -> list[str]:
        """Of bf16, where a site computes in it or in fp32: an update without a price would be rejected."""
        if self.learning.precision == "fp32":
            return []
        priced = {(r.device, r.precision) for r in self.rate_card.rates}
        return [
            f"learning.precision is {self.learning.precision!r} but {device!r} has no rate at {precision}"
            for device in sorted({s.device for s in self.sites})
            for precision in (self.learning.precision, "fp32")
            if not {(device, "any"), (device, precision)} & priced
        ]

    def _idle_readers(self) -> list[str]:
        if not self.model.reader or self.learning.routing == "lean":
            return []
        here = f"model.reader is {self.model.reader} but learning.routing is {self.learning.routing!r}"
        return [f"{here}: readers choose among the experts of lean shards"]

    def _unread_layers(self) -> list[str]:
        if self.model.own_from is None or self.model.reader:
            return []
        here = f"model.own_from is {self.model.own_from} but model.reader is 0"
        return [f"{here}: without readers nothing says whose own layers a text goes through"]

    @property
    def experts(self) -> tuple[str, ...]:
        """Every expert in charter order, those in escrow last: its position is its index in the released model."""
        return (*(e for s in self.sites for e in s.experts), *self.escrow)

    @property
    def owners(self) -> dict[str, str | None]:
        """Expert -> the site that owns it, in charter order; None for one in escrow."""
        return {e: s.name for s in self.sites for e in s.experts} | dict.fromkeys(self.escrow)

    def owner(self, expert: str) -> Site | None:
        """The site that owns the expert; None for one in escrow, or that there is none of."""
        return next((s for s in self.sites if expert in s.experts), None)

    def site(self, name: str) -> Site | None:
        return next((s for s in self.sites if s.name == name), None)

    def part_of(self, site: str) -> int | None:
        """Which part of the probe is text of the site's kind."""
        entry = self.site(site)
        return None if entry is None else self.probe.part_of(entry.domain)

    def member(self, name: str) -> Member | None:
        return next((m for m in self.members if m.name == name), None)
