"""Who takes part in a simulated consortium, from a seed: members, sites, prices, budgets, rules; and when it begins."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Any

from commons.charter import Charter
from commons.notes import Signer
from tests.support import chamber

ENDS_MS = (1_701_388_800_000, 1_704_067_200_000)
"""The end of November 2023 and the end of that year, UTC."""


@lru_cache(maxsize=1024)
def signer(name: str) -> Signer:
    return chamber.signer(name)


def begins_ms(seed: int) -> int:
    """Often a month, or a year, ends while the run goes on."""
    dice = random.Random(f"start {seed}")
    return dice.choice(ENDS_MS) - dice.choice((10_000, 60_000, 300_000, 3_000_000_000))


def random_charter(seed: int) -> Charter:
    """Two to five members, one to four sites, budgets from too little to plenty (a site-round costs some 700)."""
    dice = random.Random(f"charter {seed}")
    members = [f"m{i}" for i in range(dice.randrange(2, 6))]
    sites = [f"s{i}" for i in range(dice.randrange(1, 5))]
    lateness = _lateness(seed, len(sites))
    return chamber.charter(
        members=tuple(
            {
                "name": m,
                "key": signer(m).vkey,
                "budget_micro": dice.choice((100, 3_000, 50_000, 50_000, 10**9, 10**9)),
            }
            for m in members
        ),
        sites=tuple(_site(dice, name, members) for name in sites),
        model={
            "family": "glm4_moe",
            "config": {
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "moe_intermediate_size": 8,
                "num_experts_per_tok": 1,
                "vocab_size": 256,
            },
        },
        learning__rounds=dice.randrange(2, 6),
        learning__inner_steps=dice.randrange(1, 4),
        learning__batch_size=65_536,
        learning__fragments=1
        if "late_rounds" in lateness
        else random.Random(f"turns {seed}").randrange(1, 4),
        learning__outer={
            "learning_rate": 0.7,
            "momentum": dice.choice((0.0, 0.9)),
            "nesterov": dice.choice((True, False)),
        },
        rounds={
            "quorum": dice.randrange(1, len(sites) + 1),
            "grace_s": dice.randrange(1, 20),
            "lease_s": dice.choice((4, 8, 30)),
            **lateness,
        },
        rate_card={"currency": "EUR", "rates": _rates(dice)},
        voting={"window_s": dice.randrange(1, 15), **_voting(seed, members)},
        accounting={
            "charge_rejected_percent": dice.choice((0, 30, 100)),
            "contribution_owner_percent": dice.choice((100, 70, 0)),
            "period": dice.choice(("month", "quarter")),
            "dispute_days": dice.choice((1, 30)),
            "topups": dice.choice((0, 1, 4, 4)),
        },
        grants=tuple(random_grant(dice, f"g{i}", members, begins_ms(seed)) for i in range(dice.randrange(4))),
    )


def _lateness(seed: int, sites: int) -> dict[str, Any]:
    """How long rounds wait for sites at work, and what becomes of updates that come after all: in every other world."""
    dice = random.Random(f"late {seed}")
    if dice.random() < 0.5:
        return {"grace": dice.choice(("fixed", "adaptive"))}
    return {
        "grace": dice.choice(("fixed", "fixed", "adaptive")),
        "quorum": dice.randrange(1, max(2, sites)),
        "grace_s": dice.randrange(1, 6),
        "lease_s": dice.choice((30, 120)),
        "late_rounds": dice.choice((1, 1, 2, 3)),
        "late_discount": dice.choice((0.5, 1.0, 0.01)),
    }


def _voting(seed: int, members: list[str]) -> dict[str, Any]:
    """In every third world votes have rules of their own, officers, and weights that follow contributions."""
    dice = random.Random(f"voting {seed}")
    if dice.random() < 0.67:
        return {}
    types = ("feature.enable", "budget.grant", "ratecard.set", "member")
    rules = [
        {
            "type": of, "quorum_percent": dice.choice((1, 50)), "window_s": dice.randrange(2, 12), "extend_s": 1,
            "delay_s": dice.choice((0, 2)), "queue_s": dice.choice((0, 0, 3)), "grace_s": dice.choice((0, 20)),
        }
        for of in types if dice.random() < 0.7
    ]  # fmt: skip
    return {
        "power": {
            "base": dice.choice(("equal", "contribution", "contribution")),
            "half_life_days": 1,
            "curve": dice.choice(("linear", "sqrt")),
        },
        "rules": tuple(rules),
        "dormancy": dice.choice((True, False)),
        "officers": (dice.choice(members),),
        "pause_s": dice.choice((1, 5)),
    }


def random_grant(dice: random.Random, name: str, members: list[str], now_ms: int) -> dict[str, Any]:
    """Money, some of it for later or for a short time, or pledged device time."""
    grant: dict[str, Any] = {"name": name, "member": dice.choice(members)}
    if dice.random() < 0.3:
        return grant | {"unit": "device_ms:cpu", "amount": dice.randrange(1, 100_000)}
    begin_ms = dice.choice((0, 0, now_ms + dice.randrange(120_000)))
    return grant | {
        "amount": dice.choice((1, 777, 5_000, 10**6)),
        "priority": dice.choice((0, 50, 100, 200)),
        "not_before_ms": begin_ms,
        "expires_ms": dice.choice((0, max(begin_ms, now_ms) + dice.randrange(1_000, 180_000))),
    }


def _site(dice: random.Random, name: str, members: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "partner": dice.choice(members),
        "payer": dice.choice(members),
        "domain": f"d{name}",
        "experts": tuple(
            f"{name}-{letter}" for letter in "ab"[: 2 if name == "s0" else dice.randrange(1, 3)]
        ),
        "device": "cpu",
        "devices": dice.randrange(1, 3),
        "data_statement": "Made up.",
    }


def _rates(dice: random.Random) -> tuple[dict[str, Any], ...]:
    """Work is always paid, time often; at bf16 sometimes otherwise."""
    rate = {
        "device": "cpu",
        "micro_per_gflop": 3,
        "micro_per_pflop": dice.choice((0, 7)),
        "micro_per_device_second": dice.choice((0, 3, 500, 500)),
    }
    other = rate | {"precision": "bf16", "micro_per_gflop": 2, "micro_per_pflop": dice.randrange(10**6)}
    return (rate, other)[: dice.randrange(1, 3)]
