"""The witnesses a charter counts: its enrolled sites, each by the key it signs its notes with, and its outsiders.

Knows who they are and how many must have cosigned. Not when a witness cosigns (`commons.witness`).
"""

from __future__ import annotations

from collections.abc import Container, Mapping

from commons.charter import Charter
from commons.cosignature import Cosignatory
from commons.notes import Verifier

_NAMED_MAX = 8


def counted(charter: Charter, keys: Mapping[str, Verifier]) -> tuple[Cosignatory, ...]:
    """Sites in charter order, then outsiders; who holds the key of one before it is not counted again.

    `keys`: the enrolled sites' own. Raises NoteError when an outsider's key is none.
    """
    found: dict[bytes, Cosignatory] = {}
    for site in charter.sites:
        if site.name in keys:
            found.setdefault(keys[site.name].public, Cosignatory.of(keys[site.name]))
    for outsider in charter.witnesses.outsiders:
        witness = Cosignatory.from_vkey(outsider.vkey)
        found.setdefault(witness.public, witness)
    return tuple(found.values())


def lacking(charter: Charter, keys: Mapping[str, Verifier], seen: Container[str]) -> str:
    """The witnesses of the charter whose names are not in `seen`, for a person; those not enrolled are marked."""
    names = [
        f"{site.partner}/{site.name}" + ("" if site.name in keys else " (not enrolled)")
        for site in charter.sites
        if f"{site.partner}/{site.name}" not in seen
    ]
    names += [
        f"{outsider.name} at {outsider.url}"
        for outsider in charter.witnesses.outsiders
        if Cosignatory.from_vkey(outsider.vkey).name not in seen
    ]
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
