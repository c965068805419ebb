"""Who plays in the demo and by which rules: five invented partners, their charter, their budgets.

All names are trees. Everything here is a pure function of the options, so that two demos with one seed sign the
same rules and train the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from commons.ballots import Choice
from commons.charter import Charter
from commons.exchange import round_gflop
from commons.experts.settings import Value
from commons.records import canonical_json
from hansa.charters import site_entry, template
from hansa.samples import Sample

CONSORTIUM = "grove"
TRAINERS = ("alder", "birch", "cedar", "dogwood")
FUNDER = "elm"
MEMBERS = (*TRAINERS, FUNDER)
SPONSORED = "dogwood"
"""Its site's work is paid for by the funder."""
SHORT_OF_MONEY = "cedar"
"""Its budget ends before the last round."""
PROPOSER = "birch"
VOTES: dict[str, Choice] = {
    "alder": "for",
    "birch": "for",
    "cedar": "against",
    "dogwood": "for",
    "elm": "for",
}
FEATURE, PARAMETERS = "uplink-codec", {"trunk": "int8", "expert": "int8"}
TITLE = "Send updates as int8: a quarter of the bytes"
READER = 128
"""Width of the sites' readers, where shards are lean."""
ALONE = ("alder",)
"""Measured alone unless `--full` asks for all."""


@dataclass(frozen=True)
class Scale:
    """How much is learned: model, inner training, the seed's central phase on public text, usual number of rounds."""

    model: dict[str, Value]
    learning: dict[str, Any]
    seed_phase: dict[str, int | float]
    rounds: int


DEMO = Scale(
    model={
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "moe_intermediate_size": 48,
        "n_shared_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.04,
        "use_qk_norm": True,
        "tie_word_embeddings": True,
    },
    learning={
        "inner_steps": 8,
        "batch_size": 16,
        "sequence_length": 128,
        "learning_rate": 0.004,
        "warmup_steps": 10,
        "public_share": 0.125,
        "outer": {"learning_rate": 1.0, "momentum": 0.5, "nesterov": False},
    },
    seed_phase={"steps": 120, "batch_size": 32, "learning_rate": 0.005, "warmup_steps": 20},
    rounds=30,
)
QUICK = Scale(
    model=DEMO.model | {"hidden_size": 32, "num_hidden_layers": 2, "n_shared_experts": 1},
    learning=DEMO.learning | {"inner_steps": 4, "batch_size": 4, "sequence_length": 64},
    seed_phase={"steps": 20, "batch_size": 8, "learning_rate": 0.005, "warmup_steps": 5},
    rounds=5,
)
"""Shows everything and learns little."""


@dataclass(frozen=True)
class Script:
    """What shall happen when, from the number of rounds alone: the same in every demo with as many."""

    rounds: int

    @property
    def effective_round(self) -> int:
        """First round under the voted feature; proposed in round 1, far enough ahead that the vote is over."""
        return 5 if self.rounds >= 10 else 3

    @property
    def paid_rounds(self) -> int:
        """Rounds the partner that runs out of budget can pay for."""
        return self.rounds - 1


def charter(
    script: Script, scale: Scale, *, keys: dict[str, str], samples: Sequence[Sample], seed: int, joint: bool
) -> Charter:
    """The founding charter. `keys`: vkeys of the members and, under the consortium's name, of the log."""
    sites = [
        site_entry(
            partner, payer=FUNDER if partner == SPONSORED else partner, domain=sample.domain,
            statement=sample.data_statement,
        )
        for partner, sample in zip(TRAINERS, samples, strict=False)
    ]  # fmt: skip
    learning = scale.learning | {
        "rounds": script.rounds,
        "seed": seed,
        "routing": "joint" if joint else "lean",
    }
    plenty = {"name": "", "key": "", "budget_micro": 0}
    document = template(
        consortium=CONSORTIUM, log_key=keys[CONSORTIUM], sites=sites, learning=learning,
        members=[plenty | {"name": name, "key": keys[name]} for name in MEMBERS],
    )  # fmt: skip
    document["model"] |= {"config": scale.model, "reader": 0 if joint else READER}
    document["rounds"] = {"quorum": len(sites) - 1, "grace_s": 120, "lease_s": 900}
    unfunded = Charter.model_validate_json(canonical_json(document))
    for member in document["members"]:
        member["budget_micro"] = budget_micro(unfunded, script, member["name"])
    return Charter.model_validate_json(canonical_json(document))


def price_per_round_micro(charter: Charter) -> int:
    """What one site's round costs: useful model FLOPs by the rate card."""
    return round_gflop(charter) * charter.rate_card.rates[0].micro_per_gflop


def budget_micro(charter: Charter, script: Script, member: str) -> int:
    """Twice what the run costs the member, and half a round too little in the end for the one that runs out."""
    price = price_per_round_micro(charter)
    if member == SHORT_OF_MONEY:
        return price * script.paid_rounds + price // 2
    sites = sum(site.payer == member for site in charter.sites)
    return 2 * price * script.rounds * max(1, sites)
