"""A site's text: what is refused and in which words, what is held out, and draws that need no memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hansa import samples
from workers.data import Corpus, CorpusError, Mixture

LENGTH = 16


def paragraphs(count: int, *, start: int = 0) -> str:
    return "\n\n".join(
        f"Paragraph {i}: the quick brown fox jumps over dog {i * i}." for i in range(start, count)
    )


def load(path: Path, text: str | bytes) -> Corpus:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return Corpus.load(path, sequence_length=LENGTH)


REFUSED: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, r"text\.txt does not exist; give a UTF-8 text file or a folder"),
    "empty": (b"", r"text\.txt is empty"),
    "blank": (b" \n\n \n\f\n", r"text\.txt is empty"),
    "not UTF-8": (b"four\xff and more\n\nx", r"text\.txt is not UTF-8 at byte 4"),
    "cut character": ("ab é".encode()[:-1], r"text\.txt is not UTF-8 at byte 3"),
    "NUL": (b"abc\x00def\n\nmore", r"text\.txt holds a NUL at byte 3"),
    "one document": (b"a long line " * 50, r"text\.txt is one document"),
    "too short": (b"a\n\nb\n\nc", r"text\.txt is too short: .* need 17 bytes each"),
    "only one side long enough": (b"a" * 100 + b"\n\nb", r"text\.txt is too short"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_unusable_text_is_refused_in_words_its_owner_can_act_on(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        Corpus.load(path, sequence_length=LENGTH)


def test_a_folder_without_text_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("not read")
    with pytest.raises(CorpusError, match=r"holds no \.txt files"):
        Corpus.load(tmp_path, sequence_length=LENGTH)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_text_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(paragraphs(9))
    path.chmod(0)
    with pytest.raises(CorpusError, match="let the site's user read it"):
        Corpus.load(path, sequence_length=LENGTH)


def test_files_folders_and_line_endings_give_the_same_documents(tmp_path: Path) -> None:
    documents = paragraphs(40).split("\n\n")
    blank = load(tmp_path / "blank.txt", "\n\n".join(documents))
    feeds = load(tmp_path / "feeds.txt", "\ufeff" + "\n\f\n".join(documents))
    windows = load(tmp_path / "windows.txt", "\r\n\r\n".join(documents))
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, document in enumerate(documents):
        (folder / f"{i:03d}.txt").write_text(document)
    files = Corpus.load(folder, sequence_length=LENGTH)
    assert len({c.digest for c in (blank, feeds, windows, files)}) == 1
    assert all(np.array_equal(c.train, blank.train) for c in (feeds, windows, files))
    assert (blank.documents, blank.bytes) == (40, sum(map(len, documents)))


def test_form_feeds_win_over_blank_lines(tmp_path: Path) -> None:
    assert load(tmp_path / "a.txt", paragraphs(20) + "\f" + paragraphs(40, start=20)).documents == 2


def test_the_split_is_by_document_and_depends_on_the_document_alone(tmp_path: Path) -> None:
    small, large = load(tmp_path / "a.txt", paragraphs(300)), load(tmp_path / "b.txt", paragraphs(600))

    def sides(corpus: Corpus) -> tuple[set[bytes], set[bytes]]:
        return (
            set(corpus.train.tobytes().split(b"\0")) - {b""},
            set(corpus.held_out.tobytes().split(b"\0")) - {b""},
        )

    (train, held_out), (more_train, more_held_out) = sides(small), sides(large)
    assert train | held_out == {p.encode() for p in paragraphs(300).split("\n\n")}
    assert not train & held_out and len(held_out) == small.held_out_documents
    assert train < more_train and held_out < more_held_out
    assert 0.05 < len(more_held_out) / 600 < 0.15


def test_repeated_documents_are_never_on_both_sides(tmp_path: Path) -> None:
    corpus = load(tmp_path / "a.txt", "\n\n".join([paragraphs(30)] * 3))
    assert not set(corpus.train.tobytes().split(b"\0")[:-1]) & set(
        corpus.held_out.tobytes().split(b"\0")[:-1]
    )


def test_batches_are_a_pure_function_of_seed_step_and_name(tmp_path: Path) -> None:
    corpus = load(tmp_path / "a.txt", paragraphs(200))
    again = load(tmp_path / "a.txt", paragraphs(200))
    other = load(tmp_path / "b.txt", paragraphs(200))
    late = corpus.batch(7, rows=4, length=LENGTH, seed=1)
    for step in range(5):
        again.batch(step, rows=4, length=LENGTH, seed=1)
    assert np.array_equal(again.batch(7, rows=4, length=LENGTH, seed=1), late)
    for source, step, seed in ((corpus, 8, 1), (corpus, 7, 2), (other, 7, 1)):
        assert not np.array_equal(source.batch(step, rows=4, length=LENGTH, seed=seed), late)


def test_batches_are_windows_of_the_training_side_only(tmp_path: Path) -> None:
    corpus = load(tmp_path / "a.txt", paragraphs(200))
    text = corpus.train.tobytes()
    rows = corpus.batch(0, rows=64, length=LENGTH, seed=0)
    assert rows.shape == (64, LENGTH + 1) and rows.dtype == np.int64
    assert all(row.astype(np.uint8).tobytes() in text for row in rows)


def test_the_last_byte_can_be_drawn_and_nothing_beyond(tmp_path: Path) -> None:
    corpus = load(tmp_path / "a.txt", "x" * LENGTH + "\n\n" + "y" * LENGTH)
    assert len(corpus.train) == LENGTH + 1
    assert corpus.batch(3, rows=8, length=LENGTH, seed=0)[:, -1].tolist() == [0] * 8


def test_held_out_rows_do_not_overlap_and_are_bounded(tmp_path: Path) -> None:
    corpus = load(tmp_path / "a.txt", paragraphs(300))
    every = corpus.held_out_rows(length=LENGTH, limit=10**6)
    assert len(every) == (len(corpus.held_out) - 1) // LENGTH
    assert np.array_equal(every[:, :-1].ravel(), corpus.held_out[: every.shape[0] * LENGTH])
    assert len(corpus.held_out_rows(length=LENGTH, limit=5)) == 5


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_the_public_share_holds_exactly_over_many_steps(tmp_path: Path, share: float) -> None:
    private, public = load(tmp_path / "a.txt", paragraphs(100)), load(tmp_path / "b.txt", paragraphs(99))
    marked = Corpus(**{**vars(public), "train": np.full(100, 255, np.uint8)})
    mixture = Mixture(((private, 1 - share), (marked, share)))
    batches = [mixture.batch(step, rows=8, length=LENGTH, seed=0) for step in range(100)]
    assert {len(b) for b in batches} == {8}
    assert sum(int((b[:, 0] == 255).sum()) for b in batches) == round(share * 800)


def test_sample_texts_are_real_repeatable_and_trainable(tmp_path: Path) -> None:
    once, again = (
        samples.write_samples(tmp_path / "a", sites=3),
        samples.write_samples(tmp_path / "b", sites=3),
    )
    assert [s.sha256 for s in once] == [s.sha256 for s in again]
    assert len({s.domain for s in once}) == 4 and once[-1].domain == samples.PUBLIC
    for sample in once:
        assert sample.path.stat().st_size == sample.bytes > 500_000
        assert Corpus.load(sample.path, sequence_length=128).held_out_documents >= 1


def test_a_missing_sample_package_is_replaced_by_the_next_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> list[str]:
        raise ImportError("not installed")

    domains = {"a": ("a's licence", absent), "b": ("b's licence", lambda: ["text\f\0of b"])}
    monkeypatch.setattr(samples, "DOMAINS", domains)
    written = samples.write_samples(tmp_path, sites=1)
    assert [s.domain for s in written] == ["b", samples.PUBLIC]
    assert written[0].path.read_text() == "text\nof b\n"
    with pytest.raises(samples.SamplesError, match=r"only 1 of 2 .*\(a missing\); pip install"):
        samples.write_samples(tmp_path, sites=2)
