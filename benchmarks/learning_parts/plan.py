"""What is run: sizes and variants, as data (`schedule`: with which seeds). Fixed before the runs; adding a variant changes no other.

A variant says what differs: who trains on what, which experts a site holds, what is exchanged how often, and how it is
combined. All variants of a size make the same inner steps, with the same inner recipe, on as many tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.learning_parts.bad import Bad
from benchmarks.learning_parts.combining import Sent
from commons.charter import Model
from commons.experts.map import ExpertMap
from commons.learning import Outer, Strategy
from commons.names import ExpertId, SiteId
from commons.privacy.terms import Robust

Config = dict[str, bool | int | float | str | tuple[int, ...]]
EXPERTS = 8
MIXED_OWN = 0.7
AVERAGED, NESTEROV = Outer(), Outer(learning_rate=0.7, momentum=0.9, nesterov=True)
HALF = Outer(learning_rate=1.0, momentum=0.5)
STRONG, LEADING = Outer(learning_rate=1.0, momentum=0.75), Outer(learning_rate=1.0, momentum=0.9)
READER = 128
NEVER = 10**6
"""Rounds: but for the last exchange, which all runs end with."""


@dataclass(frozen=True)
class Size:
    """Model and inner recipe. Tokens over all four sites: 4 * steps * batch * length."""

    name: str
    config: Config
    steps: int
    """Inner steps of each site."""
    batch: int = 8
    """Rows of one site's step; central has as many for each site."""
    length: int = 128
    learning_rate: float = 0.012
    """Tuned on central, short regime, validation side: 0.004 gives 2.022, 0.008 1.902, 0.016 1.843 and 1.876."""
    seed_rate: float = 0.008
    warmup: int = 20
    final_rate: float = 0.05
    seed_steps: int = 0
    """Central steps of the seed phase, each of 4 * batch rows: a quarter of `steps`."""

    reader: int = 0
    """Width of the sites' readers, where a variant has them."""
    own_from: int | None = None
    """First layer of the sites' own, where a variant has them."""

    @property
    def model(self) -> Model:
        return Model(family="glm4_moe", config=self.config, reader=self.reader, own_from=self.own_from)

    def experts(self, sites: Sequence[str], count: int = EXPERTS) -> ExpertMap:
        """The map of `count` experts dealt evenly over the sites, in their order."""
        each = count // len(sites)
        owners = {ExpertId(f"{s}.{n}"): SiteId(s) for s in sites for n in range(each)}
        return ExpertMap.from_owners(self.model, owners)


SMALL: Config = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "moe_intermediate_size": 96,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.04,
    "use_qk_norm": True,
    "tie_word_embeddings": True,
}
"""0.39 M parameters, 0.16 M active a token."""
LARGE: Config = SMALL | {
    "hidden_size": 512,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "moe_intermediate_size": 1024,
    "max_position_embeddings": 1024,
    "initializer_range": 0.02,
}
"""152 M parameters, 58 M active a token."""
SIZES = {
    "rank": Size("rank", SMALL, steps=240, seed_steps=60),
    "t1": Size("t1", SMALL, steps=780, seed_steps=195),
    "t2": Size(
        "t2", LARGE, steps=17_660, seed_steps=4_415, batch=16, length=1024, learning_rate=0.002, seed_rate=0.002, warmup=400,
    ),
}  # fmt: skip
"""`rank`: 6 tokens for each active parameter, to choose among variants. `t1`: 20. `t2`: 20, for a GPU; never run, its rates
are guesses until `central-half-rate` and `central-double-rate` say otherwise."""


@dataclass(frozen=True)
class Variant:
    name: str
    data: Literal["pooled", "alone", "apart"] = "apart"
    """All texts in every step; each site by itself; each site its own text and updates exchanged."""
    split: Literal["domains", "mixed", "alike"] = "domains"
    """A site's text: one domain; MIXED_OWN of its batches one domain and the rest all others; all domains alike (IID)."""
    sites: int = 4
    public_site: bool = False
    """A site more, with as many experts as another, that trains on the public text as the others do on theirs."""
    experts: int = EXPERTS
    """Of all sites together."""
    start: Literal["seed", "whole", "scratch"] = "seed"
    """`whole`: every site's experts begin as copies of all of the seed's, so that it trains what one alone does."""
    holds: Literal["own", "guests", "all"] = "guests"
    """A site trains its own experts and has no others; or the others frozen; or trains copies of all of them."""
    inner_steps: int = 10
    """Of the shortest round: nothing is exchanged more often."""
    trunk_every: int = 1
    """Rounds from one exchange of trunk and router to the next."""
    experts_every: int = 1
    fragments: int = 1
    """Parts of trunk and router that take turns: a round exchanges one of them (the charter's `fragments`)."""
    overlap: int = 0
    """Steps of a round made before the last exchange is taken in (the charter's `overlap_steps`)."""
    closing: Sent | None = None
    """Codec of the run's last exchange, in place of those of trunk and experts (the charter's `codecs.closing`)."""
    experts_by: Literal["owner", "alike", "routed"] = "owner"
    """Whose deltas move an expert: its owner's; all sites' alike; all sites' by the tokens they routed to it."""
    router_by: Literal["alike", "routed"] = "alike"
    """Likewise a router row."""
    radial: float = 0.0
    """How far an averaged matrix is stretched from its own length (0) to the mean length of the sites' deltas (1:
    radial-directional averaging, arXiv 2604.21428)."""
    radial_end: float | None = None
    """What `radial` comes to over the run, in a straight line."""
    adaptive: float = 0.0
    """Decay of the mean delta's second moment, by which each element of a stretched matrix is divided; 0: it is not
    (server-side adaptivity as in FedAdam, arXiv 2003.00295, with the length left to `radial`)."""
    outer: Outer = AVERAGED
    expert_outer: Outer = AVERAGED
    momentum_end: float | None = None
    """Outer momentum falls to this over the run, in a straight line."""
    public: Literal["rest", "kin"] = "rest"
    public_share: float = 0.0
    trunk_codec: Sent = "fp32"
    expert_codec: Sent = "fp32"
    nearest: float = 0.0
    """Each expert moves this far towards its four nearest after an exchange, falling to 0 at half the run (SPES)."""
    nearest_every: int = 20
    """Rounds from one such move to the next: SPES makes one in 200 steps or more."""
    keeps: Literal["", "late", "layers"] = ""
    """Parts of the trunk that are their site's own and never exchanged. `late`: what comes after the first router;
    `layers`: all but the embedding."""
    trains: Literal["all", "experts", "kept", "nothing"] = "all"
    """`experts`: own experts and router rows alone; the trunk stays the seed's (FlexOlmo, arXiv 2507.07024). `kept`:
    and what it keeps of the trunk. `nothing`: the seed itself."""
    fit_steps: int = 0
    """Central steps on the public text after the last exchange, of the router alone; on top of the sites' tokens."""
    rate: float = 1.0
    """Inner learning rate, as a multiple of the size's. Other than 1 for tuning on central and for asking what makes
    the gap; the comparison of T1 has 1 everywhere."""
    reader: int = 0
    """Width of the sites' readers (`commons.experts.readers`)."""
    own_from: int | None = None
    """The product's own layers (`commons.experts.own`), from that layer on; 0 is what `keeps` calls layers."""
    bad: Bad = ""
    """What is wrong with the last site; empty: nothing."""
    rule: Robust | None = None
    """How shared slices are combined in place of their mean."""
    judged: Literal["", "watched", "rollback", "summed"] = ""
    """Whether rounds are measured on a probe, and by which rules (`judged.RULES`)."""
    note: str = ""

    @property
    def strategy(self) -> Strategy:
        """What its sites train by; when and how what they trained is combined is said here alone."""
        if self.trains == "experts":
            return "sovereign"
        if self.holds == "all":
            return "diloco"
        return "branch_mix" if self.trunk_every == self.experts_every == NEVER else "expert_diloco"

    def __post_init__(self) -> None:
        assert (self.experts_by == "owner") == (self.holds != "all"), f"{self.name}: who moves an expert?"


_CENTRAL = Variant("central", data="pooled", holds="all", experts_by="alike", inner_steps=30, note="B0")
_ALONE = replace(_CENTRAL, name="alone", data="alone", note="B1; gives B3 and B4")
_FEDAVG = Variant("fedavg", holds="all", experts_by="alike", note="B9")
_DILOCO = replace(_FEDAVG, name="diloco", outer=NESTEROV, expert_outer=NESTEROV, note="B5")
_LEAN = Variant(
    "lean", holds="own", experts_every=NEVER, note="expert shards, own experts only: expert_diloco"
)
_SHARDS = Variant("guests", note="expert shards, joint routing")
_SPES = replace(_SHARDS, name="spes", nearest=0.05, note="B6, without its auxiliary losses")
_ROUTED = replace(_FEDAVG, name="routed", experts_by="routed", router_by="routed", note="")
_RADIAL = replace(_ROUTED, name="routed-radial", radial=1.0)
_WHOLE = replace(
    _LEAN,
    reader=READER,
    experts=4 * EXPERTS,
    start="whole",
    note="each site with copies of all the seed's experts",
)
_LEAN_ONCE = replace(_LEAN, trunk_every=NEVER, experts_every=NEVER)
_LEAN_INT4 = replace(_LEAN, name="lean-int4", trunk_codec="int4", expert_codec="int4")
_COPIES = replace(_RADIAL, name="copies", inner_steps=5, radial_end=0.0)
_KINDS: tuple[Bad, ...] = ("", "little", "random", "shuffled", "flipped", "huge")
_AGAINST: tuple[Bad, ...] = ("", "random", "flipped", "huge")
_RULES: tuple[Literal["rollback", "summed"], ...] = ("rollback", "summed")
_BAD = (
    *(replace(_LEAN, name=f"bad-{kind}", bad=kind) for kind in (*_KINDS[1:], "absent")),
    *(
        replace(
            _LEAN, name=f"bad-{kind or 'none'}-{name.replace('_', '-')}", bad=kind, rule=Robust(rule=name)
        )
        for name in ("median", "centred_clip")
        for kind in _AGAINST
    ),
    replace(_LEAN, name="bad-none-watched", judged="watched"),
    *(
        replace(_LEAN, name=f"bad-{kind or 'none'}-{rules}", bad=kind, judged=rules)
        for rules in _RULES
        for kind in _KINDS
    ),
)
_ALL = (
    _CENTRAL,
    replace(_CENTRAL, name="central-double-rate", rate=2.0),
    replace(_CENTRAL, name="central-half-rate", rate=0.5),
    replace(_CENTRAL, name="central-faster", rate=4 / 3, note="is central at its best?"),
    _ALONE,
    _FEDAVG,
    replace(_FEDAVG, name="fedavg-30", inner_steps=30),
    replace(_FEDAVG, name="fedavg-radial", radial=1.0),
    replace(_FEDAVG, name="fedavg-momentum", outer=HALF, expert_outer=HALF),
    replace(
        _FEDAVG, name="fedavg-slow", rate=0.5, outer=STRONG, expert_outer=STRONG, note="half the inner rate"
    ),
    replace(_FEDAVG, name="fedavg-momentum-5", inner_steps=5, outer=HALF, expert_outer=HALF),
    replace(_FEDAVG, name="fedavg-momentum-2", inner_steps=2, outer=HALF, expert_outer=HALF),
    _DILOCO,
    _SHARDS,
    replace(_SHARDS, name="guests-30", inner_steps=30),
    replace(_SHARDS, name="guests-radial", radial=1.0),
    replace(_SHARDS, name="guests-momentum", outer=HALF),
    replace(_SHARDS, name="guests-trunk-10", experts_every=3),
    _SPES,
    replace(_SPES, name="spes-often", nearest_every=1),
    _LEAN,
    replace(_LEAN, name="lean-read", reader=READER, note="as `lean` to the byte, and a reader at every site"),
    replace(_LEAN, name="lean-read-public", reader=READER, public_site=True, experts=10),
    replace(
        _LEAN, name="lean-late", keeps="late", note="what comes after the first router is the site's own"
    ),
    replace(
        _LEAN, name="lean-read-own", reader=READER, own_from=0, note="all but the embedding is the site's own"
    ),
    replace(_LEAN, name="lean-read-own-1", reader=READER, own_from=1),
    replace(_LEAN, name="lean-read-own-often", reader=READER, own_from=1, inner_steps=2),
    replace(_WHOLE, name="lean-read-whole"),
    replace(_WHOLE, name="lean-read-whole-1", own_from=1),
    replace(_WHOLE, name="lean-read-whole-8", own_from=1, sites=8, experts=8 * EXPERTS),
    replace(_WHOLE, name="lean-read-whole-1-often", own_from=1, inner_steps=2),
    replace(_LEAN, name="lean-late-2", keeps="late", inner_steps=2),
    replace(
        _LEAN, name="flexolmo-late", keeps="late", trains="kept", note="and what comes before is the seed's"
    ),
    replace(_LEAN, name="flexolmo-layers", keeps="layers", trains="kept", note="the embedding is the seed's"),
    replace(_LEAN, name="lean-read-scratch", reader=READER, start="scratch"),
    replace(_LEAN, name="lean-read-8", reader=READER, sites=8),
    replace(_LEAN, name="lean-30", inner_steps=30),
    replace(_LEAN, name="lean-20", inner_steps=20),
    replace(_LEAN, name="lean-5", inner_steps=5),
    replace(_LEAN, name="lean-2", inner_steps=2),
    replace(_LEAN, name="lean-read-2", inner_steps=2, reader=READER),
    replace(_LEAN, name="lean-2-int4", inner_steps=2, trunk_codec="int4"),
    replace(_LEAN, name="lean-fragments-2", inner_steps=5, fragments=2, note="as many bytes as lean"),
    replace(_LEAN, name="lean-fragments-4", inner_steps=5, fragments=4, note="as many bytes as lean-20"),
    replace(_LEAN, name="lean-overlap", overlap=3),
    replace(_LEAN, name="lean-fragments-4-overlap", inner_steps=5, fragments=4, overlap=3),
    replace(_LEAN, name="lean-32", experts=32, note="each site as many experts as one alone has"),
    replace(_CENTRAL, name="central-32", experts=32),
    replace(_LEAN, name="lean-momentum", outer=HALF),
    replace(_LEAN, name="lean-130", inner_steps=130),
    replace(_LEAN_INT4, name="lean-130-int4", inner_steps=130),
    _LEAN_INT4,
    replace(_LEAN, name="lean-trunk-int4", trunk_codec="int4"),
    replace(_LEAN, name="lean-int2", trunk_codec="int2", expert_codec="int4", note="experts are sent once"),
    replace(_LEAN_INT4, name="lean-int4-closing", closing="bf16"),
    replace(_LEAN_INT4, name="lean-130-int4-closing", inner_steps=130, closing="bf16"),
    replace(_LEAN_INT4, name="lean-int2-closing", trunk_codec="int2", closing="bf16"),
    replace(_CENTRAL, name="untrained", trains="nothing", note="B2, the seed"),
    replace(_LEAN, name="lean-scratch", start="scratch"),
    replace(_LEAN, name="lean-8", sites=8),
    replace(_LEAN, name="lean-fit", fit_steps=24, public="kin"),
    replace(_LEAN_ONCE, name="flexolmo", trains="experts", router_by="routed", note="B7"),
    replace(_LEAN_ONCE, name="flexolmo-read", trains="experts", router_by="routed", reader=READER),
    replace(
        _LEAN_ONCE,
        name="flexolmo-read-own",
        trains="experts",
        router_by="routed",
        reader=READER,
        own_from=0,
    ),
    replace(
        _WHOLE,
        name="flexolmo-read-whole",
        trunk_every=NEVER,
        trains="experts",
        router_by="routed",
        own_from=0,
    ),
    replace(
        _LEAN_ONCE,
        name="flexolmo-read-public",
        trains="experts",
        router_by="routed",
        reader=READER,
        public_site=True,
        experts=10,
    ),
    replace(_LEAN_ONCE, name="btx", fit_steps=24, public="kin", note="B8"),
    replace(_FEDAVG, name="routed-experts", experts_by="routed"),
    _ROUTED,
    replace(_ROUTED, name="routed-momentum", outer=HALF, expert_outer=HALF),
    replace(_ROUTED, name="routed-trunk-momentum", outer=HALF),
    replace(_ROUTED, name="routed-momentum-falling", outer=HALF, expert_outer=HALF, momentum_end=0.0),
    _RADIAL,
    replace(_RADIAL, name="routed-radial-30", inner_steps=30),
    replace(_RADIAL, name="routed-radial-5", inner_steps=5),
    replace(_RADIAL, name="routed-radial-2", inner_steps=2),
    replace(_RADIAL, name="routed-radial-momentum", outer=HALF, expert_outer=HALF, radial_end=0.0),
    replace(_ROUTED, name="routed-momentum-2", inner_steps=2, outer=LEADING, expert_outer=LEADING),
    replace(_RADIAL, name="routed-adaptive-5", inner_steps=5, adaptive=0.9),
    replace(_RADIAL, name="routed-adaptive-10", adaptive=0.9),
    replace(_RADIAL, name="routed-radial-trunk-10", experts_every=3),
    replace(_COPIES, name="copies-2", inner_steps=2),
    replace(_COPIES, name="copies-fast", rate=1.5),
    replace(_FEDAVG, name="fedavg-fast", rate=2.0),
    replace(_COPIES, name="copies-kin-2", inner_steps=2, public="kin", public_share=0.25),
    replace(_COPIES, name="copies-rest", public_share=0.125),
    replace(_COPIES, name="copies-kin", public="kin", public_share=0.125),
    replace(_COPIES, name="copies-shards", holds="guests", experts_by="owner", router_by="alike"),
    replace(_CENTRAL, name="central-kin", public="kin", public_share=0.125),
    _COPIES,
    replace(_COPIES, name="copies-int4", trunk_codec="int4", expert_codec="int4"),
    replace(_CENTRAL, name="central-scratch", start="scratch"),
    replace(_FEDAVG, name="fedavg-scratch", start="scratch"),
    *_BAD,
    replace(_COPIES, name="copies-alike", split="alike"),
    replace(_FEDAVG, name="fedavg-alike", split="alike"),
    *(
        replace(v, name=f"{v.name}-{split}", split=split)
        for split in ("mixed", "alike")
        for v in (_ALONE, _LEAN, _SHARDS)
    ),
    replace(_COPIES, name="copies-mixed", split="mixed"),
    replace(_FEDAVG, name="fedavg-mixed", split="mixed"),
)
VARIANTS: dict[str, Variant] = {v.name: v for v in _ALL}
