"""A tokenizer trained in a moment, and charters that name one."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from hansa import tokenizers
from tests.support.consortium import MODEL

TOKENS = 320
VOCABULARY = 328
"""Of the model: padded, as published checkpoints are."""


@cache
def trained(folder: Path) -> bytes:
    """Byte-level BPE of `TOKENS` tokens, of text like that which sites of tests have; one for each folder."""
    text, out = folder / "public.txt", folder / "trained.json"
    says = "\n\n".join(f"somebody says {i * i} and {i}, naïve café" for i in range(200))
    text.write_text(says, "utf-8")
    tokenizers.train([text], tokens=TOKENS, out=out)
    return out.read_bytes()


def model_of(data: bytes, **changes: Any) -> dict[str, Any]:
    """A charter's `[model]` with this tokenizer."""
    named = {
        "file": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "bytes": len(data),
        "tokens": TOKENS,
        "end": 0,
    }
    config = {**MODEL, "vocab_size": VOCABULARY}
    return {"family": "glm4_moe", "config": config, "tokenizer": named | changes}


def changed(data: bytes, **parts: Any) -> bytes:
    """The tokenizer with other parts."""
    return json.dumps({**json.loads(data), **parts}).encode()
