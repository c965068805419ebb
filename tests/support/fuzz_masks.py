"""What sites can do to the coordinator with words about masks: get an answer, or a refusal by code, while sums are found.

Sites that are honest in the end first say mutated, misplaced, repeated and other sites' words, straight to the servicer,
and hand in what is wrong; now and then the coordinator knows again only what it kept.
`python -m tests.support.fuzz_masks EXECUTIONS [SEED]` does so, and tells what came of them, how many there were in a
second, and what they took of memory.
"""

from __future__ import annotations

import tempfile
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from commons.masking import FixedPoint, strength
from commons.masking.attempt import ComplaintNote
from commons.names import SiteId
from commons.notes import digest, parse
from commons.wire.v1 import consortium_pb2 as wire
from commons.work import AssignmentNote
from orchestrator.masking import DATA_BYTES_MAX, NOTE_BYTES_MAX
from orchestrator.progress import RoundState
from tests.support import fuzz_decoders
from tests.support.consortium import masking_charter, signer
from tests.support.fuzz_services import MEMORY, tell
from tests.support.hostile_uploads import Packed, hostile
from tests.support.masking_sites import STEPS, MaskingSite, Word, note_of, with_data, with_note
from tests.support.mutations import message
from tests.support.rounds import RUN, Died, Stage, Step
from tests.support.servicer import Aborted, Port

ROUNDS = 6
"""Of a run."""
SITES = ("alder", "birch", "cedar", "elm", "fir")
_TURNS = 2000


class Box:
    """One run of three to five sites, each round of it disturbed. Raises AssertionError when something is not as it must be."""

    def __init__(self, folder: Path, random: Random, counts: Counter[str], sites: int = 0) -> None:
        """`sites`: so many, and a round asks for all of them; 0: drawn."""
        self.random, self.counts = random, counts
        self.names = SITES[: sites or random.randint(3, 5)]
        self.of = masking_charter(
            self.names, rounds=ROUNDS, quorum=sites or random.randint(3, len(self.names)), lease_s=180
        )
        self.stage = Stage(folder, self.of, rounds=ROUNDS)
        self.port = Port(self.stage)
        self.sites = {n: MaskingSite(n, self.of, random.randbytes(32)) for n in self.names}
        self.said: deque[Word] = deque(maxlen=40)
        """Words of this attempt and of earlier ones."""
        self.left = 0
        self.over = False
        """The coordinator's process ends at the end of this turn."""
        self.of_attempt = (0, 0)
        self.orders: dict[str, AssignmentNote] = {}
        self.packed: dict[str, Packed] = {}
        self.ready: set[str] = set()
        """Sites whose `packed` is masked."""
        self.taken: dict[str, bytes] = {}
        """Admitted site of the round -> its payload."""
        self.views: dict[int, wire.MaskView] = {}
        """The last one of each attempt of the round."""

    def run(self, executions: int) -> int:
        """So many, or until the run is over; how many there were."""
        self.left = executions
        for _ in range(ROUNDS):
            if self.left <= 0:
                break
            self.views.clear()
            self.taken.clear()
            while not self.play(self.turn):
                pass
            self.check_closed()
        return executions - self.left

    def play(self, turn: Step) -> bool:
        """`turn` each time the coordinator waits. Whether the round is closed: not before the coordinator was started again, when it was to be."""
        self.over = False
        try:
            assert self.stage.play(*[turn] * _TURNS), "a round closes"
        except Died:
            assert self.over, "the round did not close"
            self.stage.restart()
            self.port = Port(self.stage)
            epoch = self.stage.desk.consortium.journal.epoch
            self.packed = {
                n: replace(p, upload=replace(p.upload, epoch=epoch)) for n, p in self.packed.items()
            }
            return False
        return True

    def close(self) -> None:
        self.stage.close()

    @property
    def opened(self) -> RoundState:
        return self.stage.desk.runs.by_id[RUN].history[-1]

    @property
    def taking_part(self) -> list[str]:
        return [n for n in self.orders if n not in self.opened.rejected] or list(self.names)

    def turn(self) -> None:
        """While the coordinator waits: time passes, somebody disturbs, somebody does what is right."""
        self.stage.passes(self.random.choice((1, 200, 1000, 4000)))
        if (self.opened.number, self.opened.attempt) != self.of_attempt:
            self._begin()
        for _ in range(self.random.choice((0, 1, 2, 5, 20))):
            if self.left > 0 and not self.over:
                out = self.random.random() < 0.05  # who has no part may speak too, and has little to say
                self._once(self.random.choice(self.names if out else self.taking_part))
        for name in self.names:
            if self.random.random() < 0.5 and name in self.orders:
                self._honest(name)
        self._check_rest()
        if self.over:
            raise Died

    def _begin(self) -> None:
        """Another attempt."""
        self.stage.passes(5000)
        self.of_attempt = self.opened.number, self.opened.attempt
        self.counts["round begun again"] += self.opened.attempt > 1
        self.orders = {n: self.stage.order(n) for n in self.names if n in self.opened.waiting}
        self.ready.clear()
        self.packed = {name: self._pack(name) for name in self.orders}

    def _pack(self, name: str) -> Packed:
        draw = np.random.default_rng(self.random.randrange(2**32))
        plain = Packed.of(self.stage, name)
        parts = self.stage.map.uplink(SiteId(name))
        deltas = {part.name: draw.normal(0, 0.05, part.shape).astype(np.float32) for part in parts}
        return plain.restated(self.sites[name].key, *self.sites[name].pack(deltas))

    def _look(self, name: str) -> Word:
        """What the site, which is shown all there is, says next."""
        ask = wire.MaskRequest(run=RUN, round=self.opened.number)
        try:
            view = self._ask(name, ask)
        except Aborted:  # it has no part any more
            return {}
        self.views[view.attempt] = view
        site = self.sites[name]
        word = site.answer(self.orders[name], view)
        if site.why is not None:
            right = site.stands(self.orders[name], view) == "right" and not self._spoilt(view)
            assert not right, f"{name} is shown what is not right: {site.why}"
        if word:
            self.said.append(word)
        if site.ready and name not in self.ready and name in self.opened.waiting:
            self.packed[name] = self._pack(name)
            self.ready.add(name)
        return word

    def _honest(self, name: str) -> None:
        word = self._look(name)
        if word:
            try:
                self._ask(name, wire.MaskRequest(run=RUN, round=self.opened.number, **word))
            except Aborted as refused:
                self.counts[f"round honest word {refused}"] += 1
        if name in self.ready and name in self.opened.waiting and self.random.random() < 0.6:
            self._hand_in(name)

    def _hand_in(self, name: str) -> None:
        for _ in range(2):
            try:
                self.port.hand_in(name, self.packed[name])
                return
            except Aborted as refused:
                self.counts[f"round honest update {refused}"] += 1

    def _ask(self, name: str, request: wire.MaskRequest) -> wire.MaskView:
        return self.port.link.Mask(request, self.port.hurried(name))

    def _once(self, name: str) -> None:
        self.left -= 1
        kind, request = self.random.choice(_REQUESTS)
        if name not in self.orders:
            return
        try:
            came = request(self, name)
        except DecodeError:
            came = "unreadable"
        except Aborted as refused:
            came = str(refused)
        if came == "nothing":
            self.left += 1
            return
        self.counts[f"{kind} {came}"] += 1

    def say(self, name: str, word: Word, **place: Any) -> str:
        fields: dict[str, Any] = {"run": RUN, "round": self.opened.number} | place | word
        self._ask(name, wire.MaskRequest(**fields))
        return "answered"

    def mutated(self, name: str) -> str:
        honest = wire.MaskRequest(
            run=RUN, round=self.opened.number, attempt=self.opened.attempt, stage=2, **self._look(name)
        )
        self._ask(name, wire.MaskRequest.FromString(message(self.random, honest)))
        return "answered"

    def resigned(self, name: str) -> str:
        """Its own word or another's, with other fields, signed by it."""
        word = self._any(name)
        return self.say(name, with_note(word, self._signed(name, note_of(word)))) if word else "nothing"

    def another(self, name: str) -> str:
        """A word of whoever said it, in this attempt or an earlier one, as it was, or as a word of another step."""
        word = self._any(name)
        if word and self.random.random() < 0.3:
            note, data = note_of(word), next(iter(word.values()))
            kind = self.random.choice(("keys", "deal", "complaint", "agreement", "reveal"))
            data = data.data if isinstance(data, wire.MaskWord) else b""
            word = {kind: wire.MaskWord(note=note, data=data) if kind in ("deal", "reveal") else note}
        return self.say(name, word)

    def padded(self, name: str) -> str:
        """The same words under more signatures than one, or very many bytes."""
        word = self._any(name)
        if not word:
            return "nothing"
        more = signer("stranger").sign(parse(note_of(word)).text).partition(b"\n\n")[2]
        size = self.random.choice((1, 1, 2, 30, 9000))
        return self.say(name, with_note(word, note_of(word) + more * size))

    def large(self, name: str) -> str:
        word = self._any(name)
        if not isinstance(next(iter(word.values()), None), wire.MaskWord):
            return "nothing"
        return self.say(name, with_data(word, bytes(self.random.choice((16_384, 16_385, 1 << 20)))))

    def dealt(self, name: str) -> str:
        """A deal, or shares, that are signed and wrong; rarely, as one that is taken costs the round its sum."""
        word = self._look(name)
        [(kind, said)] = word.items() or [("", wire.MaskWord())]
        if kind not in ("deal", "reveal") or (kind == "deal" and self.random.random() > 0.03):
            return "nothing"
        data = bytearray(said.data)
        data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        field = "bundle" if kind == "deal" else "shares"
        text = parse(said.note).text.replace(f"{field} {digest(said.data)}", f"{field} {digest(bytes(data))}")
        note = self.sites[name].key.sign(text)
        return self.say(name, {kind: wire.MaskWord(note=note, data=bytes(data))})

    def keyed(self, name: str) -> str:
        """Keys that are not its own, or somebody else's."""
        word = self._look(name)
        if "keys" not in word or self.random.random() > 0.05:
            return "nothing"
        text, at = parse(word["keys"]).text, self.random.choice(("channel", "mask"))
        lines = [
            f"{at} {self.random.randbytes(32).hex()}" if line.startswith(f"{at} ") else line
            for line in text.splitlines()
        ]
        return self.say(name, {"keys": self.sites[name].key.sign("".join(f"{line}\n" for line in lines))})

    def complaint(self, name: str) -> str:
        """About somebody, right in form at times: the site is out then, or too late."""
        self._look(name)
        view = self.views.get(self.opened.attempt)
        deals = self.sites[name].deals(self.orders[name], view).digest if view and view.deals else "-"
        of = self.sites[name].attempt(self.orders[name], self.opened.attempt)
        note = ComplaintNote(**vars(of), site=name, accused=self.random.choice(self.names), deals=deals)
        if name not in self.opened.waiting or self.random.random() < 0.03:
            return self.say(name, {"complaint": self.sites[name].key.sign(note.text)})
        return self.say(
            name, {"complaint": fuzz_decoders.signed(self.random, note.text, self.sites[name].key)}
        )

    def upload(self, name: str) -> str:
        packed = {n: self.packed.get(n, self.packed[name]) for n in SITES}
        messages = hostile(self.random, name, packed)
        return "admitted" if self.port.send(name, messages) else "one lane taken"

    def restart(self, name: str) -> str:
        """What a new process knows: what is on disk."""
        if self.random.random() < 0.7:
            return "nothing"
        self.over = True
        return "done"

    def forgets(self, name: str) -> str:
        self.sites[name].forget()
        return "done"

    def _signed(self, name: str, note: bytes) -> bytes:
        return fuzz_decoders.signed(self.random, parse(note).text, self.sites[name].key)

    def _any(self, name: str) -> Word:
        """A word of the site, or of anybody, now or earlier."""
        own = self._look(name)
        return own if (own and self.random.random() < 0.5) or not self.said else self.random.choice(self.said)

    def _spoilt(self, view: wire.MaskView) -> bool:
        """Whether somebody is taken for what it is not: its keys or its deal are no honest site's."""
        return any(self.sites[n].stands(order, view) == "wrong" for n, order in self.orders.items())

    def _check_rest(self) -> None:
        """Of what is said, each site's newest word of a step is kept, and no more."""
        desk, opened = self.stage.desk, self.opened
        folder = desk.spool.root / RUN / str(opened.number) / "masks"
        kept = [file for file in folder.glob("*/*") if file.parent.name == str(opened.attempt)]
        assert len(kept) <= (len(STEPS) + 1) * len(self.names) + 3, kept
        most = NOTE_BYTES_MAX + DATA_BYTES_MAX + 10
        assert all(file.stat().st_size <= most for file in kept)
        assert len(list(folder.glob("*"))) <= opened.attempt
        for site in opened.admitted.keys() - self.taken.keys():
            with desk.spool.open(RUN, opened.number, site) as spooled:
                payload = bytearray(spooled.manifest.payload_bytes)
                for part in spooled.manifest.parts:  # of a frame each
                    here = memoryview(payload)[part.offset : part.offset + part.bytes]
                    spooled.read_into(part.offset, here)
                self.taken[site] = bytes(payload)

    def check_closed(self) -> None:
        """The sum is found when a crowd is admitted and nobody dealt falsely, and it is the sum of what they sent."""
        desk, closed = self.stage.desk, self.opened
        assert closed.state and not list(desk.spool.root.glob("*/*/*"))
        view = self.views.get(closed.attempt, wire.MaskView())
        shown = bool(view.deals)
        spoilt = shown and self._spoilt(view)
        self.counts[f"round {closed.shared}{' spoilt' if spoilt else ''} of {len(closed.admitted)}"] += 1
        base, state = desk.store.load(closed.base), desk.store.load(closed.state)
        shared = [part.name for part in self.stage.map.shared()]
        if closed.shared == "unmoved":
            crowd = strength(self.of.privacy.secagg, len(view.keys)).crowd
            assert spoilt or len(closed.admitted) < crowd, "the sum was lost for nothing"
            assert all(np.array_equal(state[name], base[name]) for name in shared)
            return
        assert closed.shared == "masked" and shown
        assert self.taken.keys() == closed.admitted.keys()
        if spoilt:
            return
        words = [
            self.sites[n].unmasked(self.orders[n], view, payload) for n, payload in sorted(self.taken.items())
        ]
        fixed = FixedPoint.of(self.of.privacy.secagg, len(self.names))
        for name in shared:
            total = np.asarray(np.sum([one[name] for one in words], axis=0, dtype=np.uint32))
            want = base[name] + fixed.mean(total, len(words)).reshape(base[name].shape)
            np.testing.assert_array_equal(state[name], want)


Request = Callable[[Box, str], str]
_REQUESTS: tuple[tuple[str, Request], ...] = (
    *(("mutated", Box.mutated),) * 3,
    *(("resigned", Box.resigned),) * 3,
    *(("another's", Box.another),) * 3,
    ("padded", Box.padded),
    ("too large", Box.large),
    ("false shares", Box.dealt),
    ("false keys", Box.keyed),
    ("complaint", Box.complaint),
    ("upload", Box.upload),
    ("restart", Box.restart),
    ("site restart", Box.forgets),
)


def disturb(executions: int, seed: int, counts: Counter[str]) -> None:
    """So many requests, over as many runs as they take."""
    random, left = Random(seed), executions
    while left > 0:
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            box = Box(Path(folder), random, counts)
            left -= box.run(left)
            box.close()


if __name__ == "__main__":
    tell(disturb)
