"""The proof of a charter as one file: what a coordinator showed, to be checked anywhere and by anybody.

A file that proves its charter is a proof to hand on. One that does not, and that the coordinator's key has signed as its
proof (`commons.anchors.Shown`), is evidence against the coordinator: nothing was left out by whoever hands it on.
All records share one inclusion proof (`commons.merkle_multi`), which keeps a file of anchored votes small.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from commons import charter_file
from commons.anchors import Shown, entries_digest
from commons.chain import Entry, Trust, VerifiedCharter, verify_chain
from commons.charter import Charter
from commons.errors import Refusal
from commons.lodging import LodgedBallot
from commons.log import Checkpoint, hash_text, read_hash
from commons.merkle import ProofError
from commons.merkle_multi import gather
from commons.notes import NoteError, open_note, parse

FORMAT = "hansa-chain/v1"
FILE_BYTES_MAX = 256 * 2**20
_KEYS = {
    "format", "founding", "earlier", "checkpoint", "consistency", "entries", "proof", "shown", "receipts", "whole",
}  # fmt: skip
_LATER = {"lodged"}
"""Not in the file while there is none."""


@dataclass(frozen=True)
class ChainFile:
    founding: Charter
    checkpoint: bytes
    entries: tuple[tuple[int, bytes], ...]
    """(journal index, leaf)."""
    proof: tuple[bytes, ...]
    """One inclusion proof for all of them."""
    shown: bytes
    """The coordinator's signature under exactly these entries; empty: it signed none."""
    consistency: tuple[bytes, ...] = ()
    earlier: bytes = b""
    """A checkpoint the log signed before, which this one has to extend; empty: none."""
    receipts: tuple[tuple[int, bytes], ...] = ()
    """Ballots that the journal acknowledged, as (index, note)."""
    whole: bool = False
    """Every vote is recounted, also those before an anchor."""
    lodged: tuple[LodgedBallot, ...] = ()
    """Ballots that sites keep, each of which its vote has to show."""

    @classmethod
    def of(
        cls, founding: Charter, checkpoint: bytes, entries: Sequence[Entry], shown: bytes, **more: Any
    ) -> Self:
        """Of what a coordinator answered. Raises ValueError when its proofs do not fit together."""
        size = Checkpoint.read(parse(checkpoint)).size
        proof = gather([(index, path) for index, _, path in entries], size)
        leaves = tuple((index, leaf) for index, leaf, _ in entries)
        return cls(founding, checkpoint, leaves, tuple(proof), shown, **more)

    def verify(self) -> VerifiedCharter | Refusal:
        """Every step of `commons.chain`, from the founding charter in the file: whether that is one's own is for the
        reader to see (`founding`). Raises ValueError when that charter is none."""
        trust = Trust.of(self.founding)
        earlier = Checkpoint.open(self.earlier, trust.log) if self.earlier else None
        return verify_chain(
            [(index, leaf, ()) for index, leaf in self.entries],
            self.checkpoint,
            self.consistency,
            trust=trust,
            have=earlier,
            multi=self.proof,
            whole=self.whole,
            receipts=self.receipts,
            lodged=self.lodged,
        )

    def signed(self) -> Shown | None:
        """What the coordinator signed to have shown, if it is this; then a refusal by `verify` convicts it."""
        try:
            log = Trust.of(self.founding).log
            said = Shown.from_note(open_note(self.shown, [log]))
            size = Checkpoint.open(self.checkpoint, log).size
        except NoteError:
            return None
        whole = (said.consortium, said.size, said.entries) == (log.name, size, entries_digest(self.entries))
        return said if whole else None

    def dump(self) -> bytes:
        lodged = {"lodged": [one.dump().decode() for one in self.lodged]} if self.lodged else {}
        return json.dumps(
            lodged
            | {
                "format": FORMAT,
                "founding": charter_file.canonical(self.founding).decode(),
                "earlier": self.earlier.decode(),
                "checkpoint": self.checkpoint.decode(),
                "consistency": [hash_text(h) for h in self.consistency],
                "entries": [[index, leaf.decode()] for index, leaf in self.entries],
                "proof": [hash_text(h) for h in self.proof],
                "shown": self.shown.decode(),
                "receipts": [[index, note.decode()] for index, note in self.receipts],
                "whole": self.whole,
            },
            ensure_ascii=False,
            separators=(",", ":"),
        ).encode()

    @classmethod
    def load(cls, data: bytes) -> Self:
        """Raises ValueError when the file is none of these."""
        if len(data) > FILE_BYTES_MAX:
            raise ValueError(f"file of {len(data)} bytes, at most {FILE_BYTES_MAX}")
        try:
            found = json.loads(data)
            if (
                not _KEYS <= set(found) <= _KEYS | _LATER
                or found["format"] != FORMAT
                or type(found["whole"]) is not bool
            ):
                raise ValueError(f"not a {FORMAT} file")
            return cls(
                founding=charter_file.from_canonical(found["founding"].encode()),
                checkpoint=found["checkpoint"].encode(),
                entries=_numbered(found["entries"]),
                proof=tuple(read_hash(h, "a hash of the proof") for h in found["proof"]),
                shown=found["shown"].encode(),
                consistency=tuple(
                    read_hash(h, "a hash of the consistency proof") for h in found["consistency"]
                ),
                earlier=found["earlier"].encode(),
                receipts=_numbered(found["receipts"]),
                whole=found["whole"],
                lodged=tuple(LodgedBallot.load(one.encode()) for one in found.get("lodged", ())),
            )
        except (AttributeError, KeyError, TypeError, RecursionError, ProofError) as error:
            raise ValueError(f"not a {FORMAT} file: {error}") from error


def _numbered(items: list[list[Any]]) -> tuple[tuple[int, bytes], ...]:
    found = tuple((index, text.encode()) for index, text in items)
    if any(type(index) is not int or index < 0 for index, _ in found):
        raise ValueError("an index that is none")
    return found
