"""Sites of a masked round without threads or sockets: shown a view, each says what is right, and packs what it masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commons.charter import Charter
from commons.codec import encode
from commons.errors import Refusal
from commons.experts.map import ExpertMap
from commons.masking import Attempt, Bound, Deal, FixedPoint, Masker, SiteMasking, Step, to_bytes
from commons.masking.dealing import deal_shares, streams
from commons.masking.derive import Secrets
from commons.masking.roster import Deals, Roster
from commons.names import SiteId
from commons.notes import Signer, Verifier, parse
from commons.updates import lay_out
from commons.wire.v1 import consortium_pb2 as wire
from commons.work import AssignmentNote
from tests.support.consortium import NAME, signer

STEPS = tuple(Step)
Word = dict[str, Any]
"""A field of MaskRequest and its value; empty: nothing to say."""


@dataclass
class MaskingSite:
    """Honest. Keeps to what it is bound to; what it refuses to go on with is `why`."""

    name: str
    of: Charter
    secret: bytes
    bound: Bound | None = None
    why: Refusal | None = None
    _masking: SiteMasking | None = None
    _masker: Masker | None = None
    _said: tuple[bytes, Word] = (b"", {})
    """What it was shown last, and what it said to it."""
    _map: ExpertMap = field(init=False)

    def __post_init__(self) -> None:
        self._map = ExpertMap.from_charter(self.of)

    @property
    def key(self) -> Signer:
        return signer(f"{self.name}/{self.name}")

    @property
    def sites(self) -> dict[str, Verifier]:
        return {s.name: signer(f"{s.partner}/{s.name}").verifier for s in self.of.sites}

    @property
    def ready(self) -> bool:
        """Whether it can mask."""
        return self._masker is not None

    def attempt(self, order: AssignmentNote, number: int) -> Attempt:
        return Attempt(
            consortium=NAME, run=order.run, round=order.round, attempt=number, charter=order.charter
        )

    def forget(self) -> None:
        """Its process starts again: it knows its secret and what it is bound to."""
        self._masking = self._masker = None
        self._said = (b"", {})

    def answer(self, order: AssignmentNote, view: wire.MaskView) -> Word:
        attempt, shown = self.attempt(order, view.attempt), view.SerializeToString() + order.text.encode()
        if self._said[0] == shown:
            return self._said[1]
        if self._masking is None or self._masking.bound.attempt != attempt:
            begun = SiteMasking.begin(
                attempt, terms=self.of.privacy.secagg, site=self.name, signer=self.key, secret=self.secret,
                sites=self.sites, log=signer(NAME).verifier, bound=self.bound,
            )  # fmt: skip
            assert isinstance(begun, SiteMasking), begun
            self._masking, self._masker, self.why = begun, None, None
        said: Word = {}
        for step in STEPS[: view.stage + 1]:
            found = self._step(self._masking, step, view)
            if isinstance(found, Refusal):
                self.why, said = found, {}
                break
            said = found
            if "complaint" in said:
                break
        self.bound, self._said = self._masking.bound, (shown, said)
        return said

    def _step(self, masking: SiteMasking, step: Step, view: wire.MaskView) -> Word | Refusal:
        match step:
            case Step.KEYS:
                return {"keys": masking.keys()}
            case Step.SHARES:
                deal = masking.deal(view.keys)
                return deal if isinstance(deal, Refusal) else {"deal": _word(deal.note, deal.bundle)}
            case Step.MASKED:
                masker = masking.masker(dealt(view))
                if isinstance(masker, Refusal):
                    accused = masker.details.get("site", "")
                    return {"complaint": masking.complain(accused)} if accused else masker
                self._masker = masker
                return {}
            case Step.AGREEMENT:
                agreed = masking.agree(view.survivors)
                return {} if isinstance(agreed, Refusal) else {"agreement": agreed}
            case Step.REVEAL:
                reveal = masking.reveal(view.survivors, view.agreements)
                return (
                    reveal if isinstance(reveal, Refusal) else {"reveal": _word(reveal.note, reveal.shares)}
                )

    def pack(self, deltas: Mapping[str, NDArray[np.float32]]) -> tuple[bytes, bytes]:
        """Manifest and payload; before it can mask, of words that nothing hides."""
        shared = {part.name: number for number, part in enumerate(self._map.shared())}
        fixed = FixedPoint.of(self.of.privacy.secagg, len(self.of.sites))
        parts: list[tuple[str, Any, tuple[int, ...], bytes]] = []
        for part in self._map.uplink(SiteId(self.name)):
            values = deltas[part.name].reshape(-1)
            if part.name not in shared:
                parts.append((part.name, "fp32", part.shape, encode("fp32", values)))
                continue
            words = np.empty(values.size, np.uint32)
            fixed.quantise(values, np.zeros_like(values), words)
            if self._masker is not None:
                self._masker.frame(words, shared[part.name], 0)
            parts.append((part.name, "masked", part.shape, to_bytes(words)))
        manifest, payload = lay_out(parts)
        return manifest.to_bytes(), payload

    def unmasked(
        self, order: AssignmentNote, view: wire.MaskView, payload: bytes
    ) -> dict[str, NDArray[np.uint32]]:
        """The words of this payload of the site's, its masks under the deals shown taken away."""
        attempt, deals = self.attempt(order, view.attempt), self.deals(order, view)
        masker = Masker(streams(Secrets(self.secret, attempt, self.name), deals))
        numbers = {part.name: number for number, part in enumerate(self._map.shared())}
        found, at = {}, 0
        for part in self._map.uplink(SiteId(self.name)):
            if part.name in numbers:
                mask = np.zeros(part.size, np.uint32)
                masker.frame(mask, numbers[part.name], 0)
                found[part.name] = np.frombuffer(payload, "<u4", mask.size, at) - mask
            at += 4 * part.size
        return found

    def deals(self, order: AssignmentNote, view: wire.MaskView) -> Deals:
        """Those shown."""
        found = Deals.read(dealt(view), roster=self._roster(order, view), sites=self.sites)
        assert isinstance(found, Deals), found
        return found

    def stands(self, order: AssignmentNote, view: wire.MaskView) -> str:
        """`right`: it is shown with the keys and, once they are shown, the deal that it makes; `wrong`: with others;
        `absent`."""
        attempt = self.attempt(order, view.attempt)
        roster = self._roster(order, view)
        said = roster.keys.get(self.name)
        if said is None:
            return "absent"
        secrets = Secrets(self.secret, attempt, self.name)
        keys = [key.public_key().public_bytes_raw().hex() for key in (secrets.channel, secrets.mask)]
        if [said.channel, said.mask] != keys:
            return "wrong"
        if not view.deals:
            return "right"
        own = self.deals(order, view).dealt.get(self.name)
        if own is None:
            return "absent"
        return (
            "right" if own.note.text == parse(deal_shares(secrets, self.key, roster).note).text else "wrong"
        )

    def _roster(self, order: AssignmentNote, view: wire.MaskView) -> Roster:
        found = Roster.read(
            view.keys,
            attempt=self.attempt(order, view.attempt),
            sites=self.sites,
            terms=self.of.privacy.secagg,
        )
        assert isinstance(found, Roster), found
        return found


def dealt(view: wire.MaskView) -> list[Deal]:
    return [Deal(deal.note, deal.data) for deal in view.deals]


def _word(note: bytes, data: bytes) -> wire.MaskWord:
    return wire.MaskWord(note=note, data=data)


def note_of(word: Word) -> bytes:
    """Empty for nothing."""
    said = next(iter(word.values()), b"")
    return said.note if isinstance(said, wire.MaskWord) else said


def with_note(word: Word, note: bytes) -> Word:
    [(kind, said)] = word.items()
    return {kind: wire.MaskWord(note=note, data=said.data) if isinstance(said, wire.MaskWord) else note}


def with_data(word: Word, data: bytes) -> Word:
    [(kind, said)] = word.items()
    return {kind: wire.MaskWord(note=said.note, data=data)}
