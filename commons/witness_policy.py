"""Which logs a reader trusts, and which witnesses must have cosigned: a C2SP tlog-policy file (c2sp.org/tlog-policy).

Names of witnesses and groups are the file's own and opaque; a witness is known by its key. Keys are Ed25519 only
(logs type 0x01, witnesses type 0x04): a file with another is refused rather than read without it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from commons.cosignature import Cosignatory, cosignatures
from commons.log import Checkpoint
from commons.notes import NoteError, Verifier, open_note, parse

POLICY_BYTES_MAX = 65_536
ENTRIES_MAX = 64
"""Of logs, of witnesses and of groups, each."""
NONE = "none"
"""The quorum that asks for no witness."""

_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
_NUMBER = re.compile(r"[1-9][0-9]{0,3}")


@dataclass(frozen=True)
class KnownLog:
    verifier: Verifier
    url: str = ""


@dataclass(frozen=True)
class KnownWitness:
    name: str
    """The policy's own name for it."""
    cosignatory: Cosignatory
    url: str = ""


@dataclass(frozen=True)
class Group:
    name: str
    threshold: int
    """So many of the members must have cosigned."""
    members: tuple[str, ...]


@dataclass(frozen=True)
class Policy:
    """A policy whose names are all defined and whose keys are all different."""

    logs: tuple[KnownLog, ...]
    witnesses: tuple[KnownWitness, ...]
    groups: tuple[Group, ...]
    """Each after those it names."""
    quorum: str
    """Of a witness or a group, or `NONE`."""

    @classmethod
    def parse(cls, data: bytes) -> Policy:
        """Read a policy file of at most 64 KiB. Raises NoteError naming the line."""
        if len(data) > POLICY_BYTES_MAX:
            raise NoteError(f"policy of {len(data)} bytes, the limit is {POLICY_BYTES_MAX}")
        if wrong := _FORBIDDEN.search(data):
            raise NoteError(
                f"byte 0x{wrong[0][0]:02x} at {wrong.start()}: a policy holds tabs, newlines and text only"
            )
        reading = _Reading()
        for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
            words = re.split(r"[ \t]+", line.strip(" \t"))
            if words[0] and not words[0].startswith("#"):
                try:
                    reading.take(words)
                except NoteError as error:
                    raise NoteError(f"line {number} of the policy: {error}") from error
        return reading.done()

    @classmethod
    def of(cls, log: Verifier, witnesses: Sequence[Cosignatory], quorum: int) -> Policy:
        """One log, of which any `quorum` of these witnesses must have cosigned; witnesses go by their keys' names."""
        reading = _Reading()
        reading.take(["log", log.vkey])
        for witness in witnesses:
            reading.take(["witness", witness.name, witness.vkey])
        if quorum:
            reading.take(["group", "quorum", str(quorum), *(witness.name for witness in witnesses)])
        reading.take(["quorum", "quorum" if quorum else NONE])
        return reading.done()

    def compose(self) -> bytes:
        """The policy file."""
        lines = [["log", log.verifier.vkey, log.url] for log in self.logs]
        lines += [["witness", w.name, w.cosignatory.vkey, w.url] for w in self.witnesses]
        lines += [["group", group.name, str(group.threshold), *group.members] for group in self.groups]
        lines.append(["quorum", self.quorum])
        return "".join(f"{' '.join(filter(None, line))}\n" for line in lines).encode(
            "utf-8", "surrogateescape"
        )

    def satisfied(self, names: Iterable[str]) -> bool:
        """Whether cosignatures by these witnesses (the policy's names) make up the quorum."""
        held = {NONE, *names}
        for group in self.groups:
            if sum(member in held for member in group.members) >= group.threshold:
                held.add(group.name)
        return self.quorum in held

    def witnessed(self, data: bytes) -> tuple[Checkpoint, dict[str, int]]:
        """Open a checkpoint note of a known log: what it says, and who (the policy's names) cosigned it when.

        Raises NoteError when no known log signed it, a known key's signature does not hold, or the quorum is not met.
        """
        note = open_note(data, self._keys_of(data))
        checkpoint = Checkpoint.read(note)
        held = cosignatures(note, [witness.cosignatory for witness in self.witnesses])
        times = {w.name: held[w.cosignatory] for w in self.witnesses if w.cosignatory in held}
        if not self.satisfied(times):
            missing = [w.name for w in self.witnesses if w.name not in times]
            raise NoteError(
                f"the checkpoint of {checkpoint.origin!r} at size {checkpoint.size} is cosigned by "
                f"{_listed(times)}: too few for the quorum {self.quorum!r}; not cosigned by {_listed(missing)}"
            )
        return checkpoint, times

    def open(self, data: bytes) -> Checkpoint:
        """What a checkpoint note says, if this policy trusts it. Raises NoteError as `witnessed` does."""
        return self.witnessed(data)[0]

    def _keys_of(self, data: bytes) -> list[Verifier]:
        origin = parse(data).text.partition("\n")[0]
        keys = [log.verifier for log in self.logs if log.verifier.name == origin]
        if not keys:
            known = ", ".join(log.verifier.name for log in self.logs) or "none"
            raise NoteError(f"checkpoint of log {origin[:60]!r}; the policy knows {known}")
        return keys


class _Reading:
    """A policy while its lines come in."""

    def __init__(self) -> None:
        self._logs: list[KnownLog] = []
        self._witnesses: list[KnownWitness] = []
        self._groups: list[Group] = []
        self._free: dict[str, bool] = {}
        """Defined name -> not yet a member of a group."""
        self._quorum = ""

    def take(self, words: Sequence[str]) -> None:
        match words:
            case ["log", vkey, *url] if len(url) <= 1:
                self._log(KnownLog(Verifier.from_vkey(vkey), *url))
            case ["witness", name, vkey, *url] if len(url) <= 1:
                self._witness(KnownWitness(name, Cosignatory.from_vkey(vkey), *url))
            case ["group", name, threshold, *members] if members:
                self._group(name, threshold, members)
            case ["quorum", name]:
                if self._quorum:
                    raise NoteError("a policy has one quorum")
                if name != NONE and name not in self._free:
                    raise NoteError(f"the quorum {name!r} is defined nowhere above")
                self._quorum = name
            case _:
                raise NoteError(f"{' '.join(words)[:80]!r} defines no log, witness, group or quorum")

    def done(self) -> Policy:
        if not self._quorum:
            raise NoteError("the policy has no quorum line; `quorum none` asks for no witness")
        return Policy(tuple(self._logs), tuple(self._witnesses), tuple(self._groups), self._quorum)

    def _log(self, log: KnownLog) -> None:
        if log.verifier.public in {other.verifier.public for other in self._logs}:
            raise NoteError(f"the key of log {log.verifier.name!r} stands there twice")
        _bounded("logs", self._logs)
        self._logs.append(log)

    def _witness(self, witness: KnownWitness) -> None:
        if witness.cosignatory.public in {other.cosignatory.public for other in self._witnesses}:
            raise NoteError(f"the key of witness {witness.name!r} stands there twice")
        _bounded("witnesses", self._witnesses)
        self._define(witness.name)
        self._witnesses.append(witness)

    def _group(self, name: str, threshold: str, members: Sequence[str]) -> None:
        for member in members:
            if not self._free.get(member, False):
                why = "is in a group already" if member in self._free else "is defined nowhere above"
                raise NoteError(f"member {member!r} of group {name!r} {why}")
            self._free[member] = False
        needed = {"any": 1, "all": len(members)}.get(threshold)
        if needed is None:
            needed = int(threshold) if _NUMBER.fullmatch(threshold) else 0
        if not 1 <= needed <= len(members):
            raise NoteError(f"group {name!r} of {len(members)} members cannot need {threshold!r} of them")
        _bounded("groups", self._groups)
        self._define(name)
        self._groups.append(Group(name, needed, tuple(members)))

    def _define(self, name: str) -> None:
        if name == NONE or name in self._free:
            raise NoteError(f"{name!r} is defined already")
        self._free[name] = True


def _bounded(what: str, entries: Sequence[object]) -> None:
    if len(entries) >= ENTRIES_MAX:
        raise NoteError(f"more than {ENTRIES_MAX} {what}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "nobody"
