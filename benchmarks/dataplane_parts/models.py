"""Charters whose model has a wanted size, and seed models for them: arithmetic and files, nothing is trained.

1 MB is 10^6 bytes of fp32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commons.charter import Charter
from commons.experts.map import ExpertMap
from commons.experts.settings import Value
from commons.records import canonical_json
from hansa.charters import site_entry, template

CONSORTIUM = "quay"
PARTNERS = (
    "alder", "birch", "cedar", "dogwood", "elm", "fir", "gorse", "hazel",
    "ivy", "juniper", "kapok", "larch", "maple", "nutmeg", "oak", "pine",
)  # fmt: skip
ONE_LAYER_MB = 25
"""A model up to this size has one layer, a larger one two."""
Config = dict[str, Value]


def replicated(mb: float, experts: int) -> Config:
    """A model of `mb` MB that every site sends as a whole: seven to fourteen large tensors, experts of next to nothing.

    From 1 MB on it is within one percent of that size.
    """
    layers = 1 if mb <= ONE_LAYER_MB else 2
    wanted = mb * 1e6 / 4
    hidden = max(8, 8 * round(math.sqrt(wanted / (8 * layers)) / 8))
    vocabulary, attention = 256 * hidden, 4 * hidden * hidden
    vectors, router, owned = 2 * hidden, experts * (hidden + 1), 3 * experts * hidden
    left = wanted - vocabulary - hidden - layers * (attention + vectors + router + owned)
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "moe_intermediate_size": 1,
        "n_shared_experts": max(1, round(left / (3 * hidden * layers))),
        "num_experts_per_tok": 1,
        "tie_word_embeddings": True,
    }


def sharded(*, hidden: int, layers: int, width: int, shared: int) -> Config:
    """A model of experts: each has `width`, the trunk's feed-forward `shared` times that."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "moe_intermediate_size": width,
        "n_shared_experts": shared,
        "num_experts_per_tok": 1,
        "tie_word_embeddings": True,
    }


def charter(
    config: Mapping[str, Value],
    keys: Mapping[str, str],
    *,
    experts: int,
    rounds: int,
    learning: Mapping[str, Any],
    privacy: str = "none",
    absent: int = 0,
) -> Charter:
    """One site with `experts` experts for every partner in `keys` (the log's key is the consortium's).

    Rounds wait for everybody but `absent` sites; as many witnesses are asked for as a new charter asks for.
    """
    partners = [name for name in keys if name != CONSORTIUM]
    document = template(
        consortium=CONSORTIUM,
        log_key=keys[CONSORTIUM],
        members=[{"name": p, "key": keys[p], "budget_micro": 10**15} for p in partners],
        sites=[
            site_entry(p, payer=p, domain=p, statement="None: nothing is learned from it.")
            | {"experts": [f"{p}-{n}" for n in range(experts)]}
            for p in partners
        ],
        learning={"batch_size": 1, "sequence_length": 8, "warmup_steps": 0}
        | {"rounds": rounds, "inner_steps": 1, **learning},
    )
    document["model"]["config"] = dict(config)
    document["rounds"] = {"quorum": len(partners) - absent, "grace_s": 600, "lease_s": 7200}
    if absent:
        # Who is seen at work is waited for, who is gone is not.
        document["rounds"] |= {"grace": "adaptive", "grace_least_s": 0}
    document["privacy"] = {"mode": privacy}
    document["rate_card"]["rates"] = [{"device": "cpu", "micro_per_gflop": 1}]
    return Charter.model_validate_json(canonical_json(document))


def megabytes(of: Charter) -> float:
    """Of the charter's model."""
    return ExpertMap.from_charter(of).parameters().total * 4 / 1e6


def write_seed(folder: Path, of: Charter, *, sparse: bool = False) -> None:
    """`folder/model.safetensors`, written block by block; a file that is there is left as it is.

    `sparse`: zeros but for the first block of each tensor, so that the file takes next to no disk.
    """
    path = folder / "model.safetensors"
    if path.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    slices = ExpertMap.from_charter(of).slices
    listed: dict[str, Any] = {}
    position = 0
    for part in slices:
        listed[part.name] = {
            "dtype": "F32",
            "shape": list(part.shape),
            "data_offsets": [position, position + 4 * part.size],
        }
        position += 4 * part.size
    header = json.dumps(listed, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    draft = folder / "model.draft"
    with draft.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for number, part in enumerate(slices):
            for block in blocks(number, part.size, sparse=sparse):
                if block is None:
                    file.seek(4 * min(BLOCK, part.size - BLOCK), 1)
                else:
                    file.write(block.tobytes())
        file.truncate(8 + len(header) + position)
    draft.rename(path)


BLOCK = 1 << 20
"""Elements written at once."""


def blocks(number: int, size: int, *, sparse: bool) -> Iterator[NDArray[np.float32] | None]:
    """The `size` elements of tensor `number`; None stands for zeros up to the tensor's end."""
    noise = np.random.default_rng(1).standard_normal(min(BLOCK, size), np.float32) * np.float32(0.02)
    for start in range(0, size, BLOCK):
        if start and sparse:
            yield None
            return
        block = noise[: size - start].copy()
        block[0] = np.float32(number + start / BLOCK / 65536)  # no two tensors are one blob
        yield block
