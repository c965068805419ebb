"""What tokens are: bytes to the bit as ever, or a file's; any text comes back from them; losses are told per byte."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from commons import charter_file
from commons.charter import Model
from commons.errors import HansaError
from commons.experts.map import ExpertMap, model_problems
from commons.experts.tokenizer import FILE, Tokenizer, write_tokenizer
from commons.names import SiteId
from hansa import tokenizers
from hansa.reading import Reader
from tests.support.consortium import MODEL, charter, seed_state
from tests.support.tokenizers import TOKENS, changed, model_of, trained
from workers.data import Corpus, CorpusError
from workers.encoder import BYTES, Encoder, EncoderError
from workers.objectives import held_out_loss, loss_on, next_token_loss, with_reader
from workers.probe import Probe
from workers.shard import build_shard, initial_state

TEXT = "\n\n".join(
    f"Zoë says {i * i} — naïve, 東京, \U0001f469\u200d\U0001f52c and <|endoftext|> {i}" for i in range(60)
)
LENGTH = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return trained(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    return tmp_path / "text.txt"


def encoder(data: bytes, *, end: int = 0) -> Encoder:
    return Encoder.read(data, "the file", end=end)


def test_byte_charters_get_the_batches_and_losses_they_always_got(text: Path, tmp_path: Path) -> None:
    """The old way written out; and the same bytes by way of a file that says no more than that tokens are bytes."""
    documents = [d.strip().encode() for d in TEXT.split("\n\n")]
    hashes = [int.from_bytes(hashlib.sha256(d).digest()[:8], "big") for d in documents]
    sides = {
        out: b"".join(d + b"\0" for d, h in zip(documents, hashes, strict=True) if (h % 10 == 0) == out)
        for out in (False, True)
    }
    write_tokenizer(tmp_path)
    file = encoder((tmp_path / FILE).read_bytes())
    of = charter()
    expert_map = ExpertMap.from_charter(of)
    shard = build_shard(of.model, expert_map, own=expert_map.experts, guests=False, state=seed_state(of))
    for corpus in (Corpus.load(text, sequence_length=LENGTH, encoder=by) for by in (BYTES, file)):
        assert corpus.train.dtype == np.uint8 and corpus.train.tobytes() == sides[False]
        assert corpus.held_out.tobytes() == sides[True]
        rows = corpus.held_out_rows(length=LENGTH, limit=9)
        assert loss_on(shard, corpus, length=LENGTH, limit=9) == held_out_loss(shard, rows)
        read = Reader(of.model, expert_map, seed_state(of), by_site=False, encoder=corpus.encoder).read(rows)
        assert read.loss == float(-read.log_probabilities.mean(1).mean())
    assert b"tokenizer" not in charter_file.canonical(of), "charters from before keep their digest"


def test_a_text_is_encoded_once_in_the_smallest_numbers_and_its_tokens_stand_for_its_bytes(
    data: bytes, text: Path
) -> None:
    by = encoder(data)
    corpus = Corpus.load(text, sequence_length=LENGTH, encoder=by)
    assert corpus.train.dtype == np.uint16 and len(by.sizes) == TOKENS
    tokens = np.concatenate([corpus.train, corpus.held_out])
    assert by.sizes[tokens].sum() == corpus.bytes + corpus.documents
    assert (tokens == by.end).sum() == corpus.documents, "what looks like the end in a text is text"
    assert len(tokens) < 0.8 * corpus.bytes
    plain = Corpus.load(text, sequence_length=LENGTH)
    assert (plain.digest, plain.held_out_documents) == (corpus.digest, corpus.held_out_documents)
    assert np.array_equal(
        corpus.batch(3, rows=2, length=8, seed=1), corpus.batch(3, rows=2, length=8, seed=1)
    )


def test_losses_are_told_per_byte_whatever_the_tokens_are(data: bytes, text: Path) -> None:
    """A model that knows nothing pays ln V for each token, and so much less for a byte."""
    corpus = Corpus.load(text, sequence_length=LENGTH, encoder=encoder(data))
    of = charter(model=model_of(data))
    expert_map = ExpertMap.from_charter(of)
    state = seed_state(of)
    state["lm_head.weight"] *= 0
    shard = build_shard(of.model, expert_map, own=expert_map.experts, guests=False, state=state)
    rows = corpus.held_out_rows(length=LENGTH, limit=5)
    held = sum(len(corpus.encoder._library.id_to_token(int(t))) if t else 1 for t in rows[:, 1:].flatten())
    expected = math.log(of.model.config["vocab_size"]) * rows[:, 1:].size / held  # type: ignore[arg-type]
    assert loss_on(shard, corpus, length=LENGTH, limit=5) == pytest.approx(expected)
    read = Reader(of.model, expert_map, state, by_site=False, encoder=corpus.encoder).read(rows)
    assert read.loss == pytest.approx(expected)


def test_a_part_of_a_probe_may_begin_within_a_character(data: bytes, tmp_path: Path) -> None:
    found = ("東京" * 40 + "!").encode()
    (tmp_path / "probe.txt").write_bytes(found)
    digest = f"sha256:{hashlib.sha256(found).hexdigest()}"
    probe = Probe.load(tmp_path / "probe.txt", digest=digest, size=len(found), encoder=encoder(data))
    parts = probe.parts(2)
    read = [part.encoder.sizes[part.held_out_rows(length=60, limit=1)].sum() for part in parts]
    assert all(size == 61 for size in read)
    with pytest.raises(CorpusError, match="a part of the probe has 120 tokens, a sequence takes 201"):
        parts[0].held_out_rows(length=200, limit=1)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def without_a_byte(data: bytes) -> bytes:
    described = json.loads(data)
    del described["model"]["vocab"]["\u0100"]
    return json.dumps(described).encode()


BAD: dict[str, tuple[Callable[[bytes], bytes], int, str]] = {
    "no JSON": (lambda d: d[:-9], 0, "the file cannot be read as a tokenizer.json"),
    "another JSON": (lambda _: b'{"model": 3}', 0, "cannot be read as a tokenizer.json"),
    "no UTF-8": (lambda _: b"\xff", 0, "cannot be read as a tokenizer.json"),
    "lower case": (lambda d: changed(d, normalizer={"type": "Lowercase"}), 0, "does not give a text back: 'The Quick"),
    "compatible characters": (lambda d: changed(d, normalizer={"type": "NFKC"}), 0, "does not give a text back"),
    "a word before the text": (
        lambda d: changed(d, pre_tokenizer={**BYTE_LEVEL, "add_prefix_space": True}), 0, "does not give a text back",
    ),
    "not byte-level": (lambda d: changed(d, decoder=None), 0, "neither byte-level nor falls back to bytes"),
    "a byte is missing": (without_a_byte, 0, "no token for 1 of the 256 bytes"),
    "tokens at random": (
        lambda d: changed(d, model={**json.loads(d)["model"], "dropout": 0.1}), 0, "draws the tokens of a text at random",
    ),
    "no such end": (lambda d: d, TOKENS, f"has no token {TOKENS} to end documents with"),
}  # fmt: skip


@pytest.mark.parametrize(("harm", "end", "said"), BAD.values(), ids=BAD)
def test_a_tokenizer_that_no_run_can_use_is_refused_in_words(
    data: bytes, harm: Callable[[bytes], bytes], end: int, said: str
) -> None:
    with pytest.raises(EncoderError, match=re.escape(said)):
        encoder(harm(data), end=end)


def test_the_composition_of_characters_may_change(data: bytes) -> None:
    """Qwen's and OLMo's tokenizers compose (NFC): it is the same text by Unicode's own rule."""
    composing = encoder(changed(data, normalizer={"type": "NFC"}))
    apart, together = composing.encode(["e\u0301".encode(), "\u00e9".encode()])
    assert apart.tolist() == together.tolist()


def test_a_tokenizer_that_falls_back_to_bytes_counts_them(tmp_path: Path) -> None:
    """As Mixtral's: words with a mark for the space, and a token for each byte of what is no word."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, normalizers

    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", "a", "\u2581a"]
    made = Library(
        models.BPE(
            {w: n for n, w in enumerate(words)},
            [("\u2581", "a")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    (tmp_path / "t.json").write_text(made.to_str())
    found, data = tokenizers.describe(tmp_path / "t.json")
    by = encoder(data, end=found.end)
    [ids] = by.encode(["a aé".encode()])
    assert by.sizes[ids].tolist() == [2, 2, 1, 1] and found.end == 2


NAMED = Tokenizer(file="sha256:" + "0" * 64, bytes=9, tokens=300, end=3)
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "smaller than the tokenizer": ({"vocab_size": 299}, {}, "is 299 but the charter's tokenizer has 300 tokens"),
    "not said": ({}, {}, "is 256 but the charter's tokenizer has 300"),
    "an end that is no token": ({"vocab_size": 300}, {"end": 300}, "model.tokenizer.end is 300 but ids end at 299"),
    "no size": ({"vocab_size": 300}, {"bytes": 0}, "model.tokenizer.bytes is 0"),
    "no file": ({}, {"file": ""}, "model.tokenizer.file is empty"),
    "other than 256 bytes": ({"vocab_size": 300}, {"file": "", "bytes": 0, "tokens": 256, "end": 0}, "tokens are bytes"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "named", "said"), WRONG.values(), ids=WRONG)
def test_a_charter_whose_model_and_tokenizer_do_not_fit_is_refused(
    config: dict[str, Any], named: dict[str, Any], said: str
) -> None:
    model = {"family": "glm4_moe", "config": MODEL | config, "tokenizer": NAMED.model_dump() | named}
    try:
        found = " ".join(
            f"{'.'.join(map(str, p.path))} {p.what}" for p in model_problems(charter(model=model))
        )
    except ValueError as error:
        found = str(error)
    assert said in found


def test_a_padded_embedding_fits_and_ends_in_the_released_config(data: bytes) -> None:
    of = charter(model=model_of(data))
    assert list(model_problems(of)) == []
    assert charter_file.from_canonical(charter_file.canonical(of)) == of
    shapes = {s.name: s.shape for s in ExpertMap.from_charter(of).slices}
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"] == (328, 16)
    read = of.model.model_copy(update={"reader": 4})
    readers = ExpertMap.from_owners(Model.model_validate(read), of.owners)  # type: ignore[arg-type]
    assert {s.shape for s in readers.slices if s.name.endswith("out.weight") and "readers" in s.name} == {
        (328, 4)
    }


def test_a_file_that_is_not_what_the_charter_says_is_refused_with_both_digests(
    data: bytes, tmp_path: Path
) -> None:
    named = charter(model=model_of(data)).model.tokenizer
    (tmp_path / FILE).write_bytes(data + b" ")
    with pytest.raises(HansaError) as said:
        Encoder.load(tmp_path / FILE, named)
    assert named.file in str(said.value) and hashlib.sha256(data + b" ").hexdigest() in str(said.value)
    (tmp_path / FILE).write_bytes(data)
    assert Encoder.load(tmp_path / FILE, named).end == 0
    with pytest.raises(EncoderError, match=f"has {TOKENS} tokens, the charter says 321"):
        Encoder.load(tmp_path / FILE, named.model_copy(update={"tokens": 321}))


def test_a_trained_tokenizer_is_one_that_transformers_loads(data: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(data)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / FILE))
    [ours] = encoder(data).encode([b"somebody says 16 and 4"])
    assert theirs("somebody says 16 and 4").input_ids == ours.tolist()
    assert torch.tensor(theirs("<|endoftext|>").input_ids).tolist() == [0]


def test_tokens_are_kept_until_the_text_or_the_tokenizer_is_another(
    data: bytes, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, by, asked = tmp_path / "kept", encoder(data), list[int]()

    def load(with_: Encoder = by) -> Corpus:
        return Corpus.load(text, sequence_length=LENGTH, encoder=with_, kept=kept)

    def watched(self: Encoder, documents: Any) -> Any:
        asked.append(len(documents))
        return encode(self, documents)

    encode, other = Encoder.encode, encoder(changed(data, normalizer={"type": "NFC"}))
    first = load()
    monkeypatch.setattr(Encoder, "encode", watched)
    again = load()
    assert not asked and np.array_equal(again.train, first.train) and again.train.dtype == first.train.dtype
    [file] = kept.iterdir()
    assert file.stat().st_mode & 0o077 == 0, "as private as the text"
    file.write_bytes(file.read_bytes()[:-7])
    assert np.array_equal(load().held_out, first.held_out) and len(asked) == 1
    text.write_text(TEXT + "\n\nmore of it", "utf-8")
    assert load().documents == first.documents + 1 and len(asked) == 2
    load(other)
    assert asked == [first.documents, first.documents + 1, first.documents + 1]
    load(BYTES)
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize("width", [0, 4])
def test_logits_made_in_portions_give_the_loss_and_the_gradients_of_all_at_once(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is done for vocabularies of published models; a trained reader learns beside it as ever."""
    of = charter(learning__routing="lean", model={"family": "glm4_moe", "config": MODEL, "reader": width})
    expert_map, found = ExpertMap.from_charter(of), []
    state = initial_state(of.model, expert_map, seed=0)
    rows = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(0))
    for least in (257, 256):
        monkeypatch.setattr("workers.objectives.PORTIONS_FROM", least)
        monkeypatch.setattr("workers.objectives.PORTION", 256 * 5)
        shard = build_shard(
            of.model, expert_map, own=expert_map.experts_of(SiteId("alder")), guests=False, state=state
        )
        loss = next_token_loss(shard, rows)
        with_reader(loss, shard, rows).backward()
        found.append((loss.detach(), {n: p.grad for n, p in shard.named_parameters() if p.grad is not None}))
    (whole, grads), (parts, others) = found
    torch.testing.assert_close(parts, whole)
    assert grads.keys() == others.keys() and any("readers" in n for n in grads) == bool(width)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, msg=name)
