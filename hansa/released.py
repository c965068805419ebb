"""A released model, used as anybody would: loaded from its folder and measured on texts.

Run as a process: `python -m hansa.released FOLDER LENGTH RESULT.json DOMAIN=TEXT ...`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.numpy import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from commons import charter_file
from commons.experts.map import ExpertMap
from commons.experts.stored import READERS, unstacked, weights_files
from commons.experts.tokenizer import FILE
from hansa.beside import put_beside
from orchestrator.release.layout import CHARTER, SEED
from workers.data import Corpus
from workers.encoder import BYTES, Encoder
from workers.objectives import loss_on
from workers.routed import compute_routed_only
from workers.shard import build_shard

ROWS = 256
"""Held-out windows per text, the same ones that sites and baselines are measured on."""


def load(folder: Path) -> nn.Module:
    """The released model with its sites' readers and own layers, where it has them, and with its seed beside it, where it came
    with one (`hansa.beside`): a causal model whose logits are what all say together.

    Called as transformers' models are, on rows of one length, from their beginning or with a cache that it filled: it
    generates, greedily or by sampling. With neither it is what `load_plain` gives.
    """
    model = _with_readers(folder)
    if (folder / SEED).is_dir():
        return put_beside(model, load_plain(folder / SEED).eval())
    return model


def _with_readers(folder: Path) -> nn.Module:
    if not (folder / READERS).exists():
        return load_plain(folder)
    charter = charter_file.from_canonical((folder / CHARTER).read_bytes())
    expert_map = ExpertMap.from_charter(charter)
    tensors = {n: a for file in weights_files(expert_map) for n, a in load_file(folder / file).items()}
    state = unstacked(expert_map, tensors)
    return build_shard(charter.model, expert_map, own=expert_map.experts, guests=False, state=state).eval()


def load_plain(folder: Path) -> nn.Module:
    """As transformers alone loads it, with the learned router. Reads local files only."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    )
    compute_routed_only(model)
    return model


def released_losses(
    model: nn.Module,
    texts: Mapping[str, Path],
    *,
    length: int,
    limit: int = ROWS,
    encoder: Encoder = BYTES,
) -> dict[str, float]:
    """Held-out loss per text, nats per byte."""
    corpora = {
        domain: Corpus.load(path, sequence_length=length, name=domain, encoder=encoder)
        for domain, path in texts.items()
    }
    return {d: loss_on(model, corpus, length=length, limit=limit) for d, corpus in corpora.items()}


def encoder_of(folder: Path) -> Encoder:
    """By the tokenizer that the folder's charter names; bytes where no charter is there. Raises HansaError."""
    if not (folder / CHARTER).exists():
        return BYTES
    charter = charter_file.from_canonical((folder / CHARTER).read_bytes())
    return Encoder.load(folder / FILE, charter.model.tokenizer)


def main(arguments: list[str]) -> None:
    """`FOLDER LENGTH RESULT.json DOMAIN=TEXT…`"""
    folder, length, result, *named = arguments
    texts = {domain: Path(path) for domain, _, path in (text.partition("=") for text in named)}
    encoder, size = encoder_of(Path(folder)), int(length)
    found = {"losses": released_losses(load(Path(folder)), texts, length=size, encoder=encoder)}
    if (Path(folder) / READERS).exists():
        found["plain"] = released_losses(load_plain(Path(folder)), texts, length=size, encoder=encoder)
    Path(result).write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
