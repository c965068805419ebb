"""A released model, used as anybody would: loaded by transformers alone and measured on texts.

Run as a process: `python -m hansa.released FOLDER LENGTH RESULT.json DOMAIN=TEXT ...`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from workers.data import Corpus
from workers.objectives import held_out_loss
from workers.routed import compute_routed_only

ROWS = 256
"""Held-out windows per text, the same ones that sites and baselines are measured on."""


def released_losses(
    folder: Path, texts: Mapping[str, Path], *, length: int, limit: int = ROWS
) -> dict[str, float]:
    """Held-out loss per text of the model in `folder`, nats per byte. Reads local files only."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    compute_routed_only(model)
    losses = {}
    for domain, path in texts.items():
        rows = Corpus.load(path, sequence_length=length, name=domain).held_out_rows(
            length=length, limit=limit
        )
        losses[domain] = held_out_loss(model, rows)
    return losses


def main(arguments: list[str]) -> None:
    """`FOLDER LENGTH RESULT.json DOMAIN=TEXT…`"""
    folder, length, result, *named = arguments
    texts = {domain: Path(path) for domain, _, path in (text.partition("=") for text in named)}
    losses = released_losses(Path(folder), texts, length=int(length))
    Path(result).write_text(json.dumps({"losses": losses}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
