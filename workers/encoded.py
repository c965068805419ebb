"""A text's tokens, kept in the site's home: encoding gigabytes takes minutes, and a site starts more often than its text changes.

One file for each text, private as the text is. It says of which documents, tokenizer and library it is; anything else, or a
file that is damaged, is encoded anew.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from commons.identity import write_file
from commons.names import Digest
from workers.encoder import Encoder, Ids

log = logging.getLogger("hansa.site")
_OF = "of"


def encoded(
    text: Path, documents: Sequence[bytes], digest: Digest, encoder: Encoder, kept: Path | None
) -> list[Ids]:
    """The ids of each document of `text`, whose digest this is. `kept`: folder where they stay; None: nowhere.

    Raises StoreError when the disk refuses.
    """
    if kept is None or not encoder.name:
        return list(encoder.encode(documents))
    file = kept / f"{hashlib.sha256(str(text.resolve()).encode()).hexdigest()[:16]}.safetensors"
    of = f"{digest} {encoder.name}"
    found = _read(file, of, len(documents), len(encoder.sizes))
    if found is None:
        log.info("encoding %s, %d bytes", text, sum(map(len, documents)))
        found = list(encoder.encode(documents))
        ends = np.cumsum([len(ids) for ids in found], dtype=np.int64)
        write_file(file, save({"ids": np.concatenate(found), "ends": ends}, {_OF: of}), private=True)
    return found


def _read(file: Path, of: str, documents: int, tokens: int) -> list[Ids] | None:
    try:
        with safe_open(file, "numpy") as opened:
            if opened.metadata().get(_OF) != of:
                return None
            ids, ends = opened.get_tensor("ids"), opened.get_tensor("ends")
    except (OSError, SafetensorError, AttributeError):
        return None
    if len(ends) != documents or ends[-1] != len(ids) or (len(ids) and int(ids.max()) >= tokens):
        return None
    return np.split(ids, ends[:-1])
