"""Joining as a site: what is wrong with the partner's own text is said before anything is written or sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from commons.errors import ConfigError
from hansa.joining import join_as_site

TEXTS = {"empty": b"", "binary": b"abc\xff\xfe", "short": b"hi"}


@pytest.mark.parametrize("name", [*TEXTS, "missing"])
def test_a_text_no_site_can_train_on_is_named_and_the_invite_stays_good(name: str, tmp_path: Path) -> None:
    text = tmp_path / f"{name}.txt"
    if name in TEXTS:
        text.write_bytes(TEXTS[name])
    folder = tmp_path / "site"
    unread = tmp_path / "nobody-reads-this.invite"
    with pytest.raises(ConfigError, match=name):
        join_as_site(unread, tmp_path / "nobody-reads-this.key", folder, text=text, public=None)
    assert not folder.exists()


def test_both_texts_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        join_as_site(tmp_path, tmp_path, tmp_path / "s", text=tmp_path / "own", public=tmp_path / "public")
    assert len(error.value.problems) == 2
