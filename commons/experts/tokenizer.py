"""The released tokenizer: one token per byte, the token's id is the byte's value."""

from __future__ import annotations

import json
from pathlib import Path

VOCABULARY = 256
"""One token per byte; the token's id is the byte's value."""
END_OF_DOCUMENT = 0
"""NUL never occurs in a corpus, so it ends a document (and generation)."""


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, loadable by `AutoTokenizer.from_pretrained(folder)`.

    A byte-level BPE without merges: any UTF-8 text goes through it and back unchanged.
    """
    vocabulary = {letter: byte for byte, letter in enumerate(_letters())}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 20,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=True), "ascii")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "ascii")


def _letters() -> list[str]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]
