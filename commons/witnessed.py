"""What the charter says of witnesses: how many must have seen the journal, and those that are no site."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from commons.cosignature import WITNESSES_MAX
from commons.section import Name, Section


class Outsider(Section):
    """A witness that is no site: it is asked over HTTP (C2SP tlog-witness)."""

    name: Name
    vkey: Annotated[str, Field(max_length=512)]
    """Its cosignature key (C2SP vkey of type 0x04)."""
    url: Annotated[str, Field(pattern=r"^https?://[^\s/]\S*$", max_length=512)]
    """Its submission prefix; `/add-checkpoint` is put after it."""


class Witnesses(Section):
    """Who must have seen the journal before a site trusts it. Every site is a witness; outsiders come on top."""

    quorum: Annotated[int, Field(ge=0, le=WITNESSES_MAX)] = 0
    """Cosignatures, each by another witness, that a checkpoint needs."""
    outsiders: Annotated[tuple[Outsider, ...], Field(max_length=WITNESSES_MAX)] = ()
