"""What the browser verifies with comes to the same as Python: on the golden vectors, and on what chance makes.

Runs in node where it is installed; Chromium judges the same vectors in tests/browser.
"""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from commons import notes
from commons.ballots import CHOICES, Ballot
from commons.log import hash_text
from commons.motions import BallotKey, Motion
from commons.notes import NoteError, Signer, base64_text, open_note
from commons.opening import Opening
from commons.records import Kind, Record
from commons.tally import tally
from commons.vote_views import EvidenceView
from governance.consortium import Consortium
from governance.evidence import evidence_view
from tests.support.chamber import LOG, Chamber, Log, ballot, signer

SUPPORT = Path(__file__).parents[1] / "support"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
MEMBERS = ("acme", "beta", "coop", "dora", "echo")


def node(task: str, given: str = "") -> Any:
    assert NODE is not None
    command = [NODE, "--no-warnings", str(SUPPORT / "browser" / "in_node.mjs"), task]
    done = subprocess.run(command, check=False, input=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_the_modules_pass_the_golden_vectors() -> None:
    found = node("vectors")
    assert found["wrong"] == []
    ours = {
        "notes",
        "log",
        "cosignatures",
        "ballots",
        "tally",
        "c2sp",
        "merkle-inclusion",
        "merkle-consistency",
    }
    assert found["cases"].keys() == ours and all(count > 1 for count in found["cases"].values())


@needs_node
def test_votes_count_the_same_and_changed_notes_are_judged_the_same() -> None:
    chance = random.Random(7)
    votes = [vote(chance) for _ in range(400)]
    changed = [mutated(chance) for _ in range(700)]
    keys = [signer("acme").verifier, signer("beta").verifier]
    asked = {
        "tallies": votes,
        "notes": {
            "keys": [key.vkey for key in keys],
            "all": [base64.b64encode(note).decode() for note in changed],
        },
    }
    answer = node("answers", json.dumps(asked))
    for given, found in zip(votes, answer["tallies"], strict=True):
        assert found == in_python(given), given
    opened = [text_of(note, keys) for note in changed]
    assert answer["notes"] == opened
    assert 20 < sum(text is not None for text in opened) < 600, (
        "chance makes notes that hold and notes that do not"
    )


def voted() -> tuple[Chamber, dict[str, Any]]:
    """A vote with a delegated ballot, one that was changed, a motion and an outcome; and its evidence."""
    chamber = Chamber()
    opening = chamber.propose()
    own = Signer("acme/ballot", b"\x0b" * 32)
    delegation = BallotKey(consortium="demo", member="acme", key=own.vkey, expires_ms=2**42, nonce="00" * 16)
    chamber.submit(signer("acme").sign(delegation.text))
    chamber.vote(opening, beta="against")
    motion = Motion(
        consortium="demo",
        proposal=opening.proposal,
        member="beta",
        motion="discuss",
        reason="Why?",
        nonce="0" * 16,
    )
    chamber.submit(signer("beta").sign(motion.text))
    chamber.submit(own.sign(ballot(opening, "acme", "for").compose()))
    chamber.vote(opening, beta="for", coop="against")
    chamber.close()
    chamber.execute()
    evidence = evidence_view(cast("Consortium", chamber), opening.proposal)
    assert isinstance(evidence, EvidenceView)
    return chamber, json.loads(evidence.model_dump_json())


def told_otherwise(
    chamber: Chamber, evidence: dict[str, Any], kind: Kind, change: Callable[[bytes], bytes]
) -> Any:
    """The evidence of a log that holds a record of `kind` changed: as a coordinator would tell it that lies from the start."""
    log = Log()
    indexes = [entry["index"] for entry in evidence["entries"]]
    at = next(i for i in reversed(indexes) if chamber.journal.record(i).kind is kind)
    for index, record in enumerate(chamber.journal.all):
        body = change(record.body) if index == at else record.body
        assert index != at or body != record.body
        log.append([Record(record.kind, record.at_ms, body)])
    entries = [
        {
            "index": i,
            "leaf": base64_text(log.record(i).leaf),
            "path": [*map(hash_text, log.inclusion(i, log.size))],
        }
        for i in indexes
    ]
    return {**evidence, "checkpoint": log.checkpoint().decode(), "entries": entries}


@needs_node
def test_a_vote_is_counted_again_from_its_records_and_no_lie_about_it_passes() -> None:
    chamber, evidence = voted()
    entries = evidence["entries"]

    def without(kind: Kind) -> Any:
        kept = [e for e in entries if chamber.journal.record(e["index"]).kind is not kind]
        assert len(kept) < len(entries)
        return {**evidence, "entries": kept}

    def lie(kind: Kind, old: bytes, new: bytes) -> Any:
        return told_otherwise(chamber, evidence, kind, lambda body: body.replace(old, new, 1))

    elsewhere = {**entries[-1], "index": entries[-1]["index"] - 1}
    asked = {
        "as it was": (evidence, None),
        "twice over": ({**evidence, "entries": entries + entries}, None),
        "in another order": ({**evidence, "entries": entries[::-1]}, None),
        "a ballot that says something else": (lie(Kind.BALLOT, b"choice against", b"choice for"), "forged"),
        "a ballot of somebody else": (lie(Kind.BALLOT, b"voter coop", b"voter beta"), "not|no trusted key"),
        "a delegation to another key": (lie(Kind.BALLOT_KEY, b"expires-ms", b"expires-mt"), "fields|delegated"),
        "a motion with another reason": (lie(Kind.MOTION, b"Why?", b"Wow!"), "forged"),
        "another title": (lie(Kind.PROPOSAL, b"Twice", b"Thrice"), "itself"),
        "a heavier member": (lie(Kind.OPENING, b'"coop":1', b'"coop":9'), False),
        "another outcome": (lie(Kind.OUTCOME, b'"state":"passed"', b'"state":"defeated"'), False),
        "without the ballots": (without(Kind.BALLOT), False),
        "without the delegation": (without(Kind.BALLOT_KEY), "delegated"),
        "without the opening": (without(Kind.OPENING), "opening"),
        "without the charter": (without(Kind.CHARTER), "charter"),
        "without the proposal": (without(Kind.PROPOSAL), "itself"),
        "a record in another place": ({**evidence, "entries": [*entries[:-1], elsewhere]}, "leaf|proof"),
        "a checkpoint by nobody": ({**evidence, "checkpoint": chamber.journal.head.sign(Signer("demo", b"\x01" * 32)).decode()}, "trusted"),
    }  # fmt: skip
    given = {"log": LOG.vkey, "now_ms": chamber.now_ms, "evidence": [one for one, _ in asked.values()]}
    answers = node("recounts", json.dumps(given))
    for (name, (_, expected)), answer in zip(asked.items(), answers, strict=True):
        if expected is None:
            assert answer.get("agrees") is True and answer["ballots"] >= 4, (name, answer)
            assert answer["outcome"]["state"] == answer["state"] == "passed"
        elif expected is False:
            assert answer.get("agrees") is False, (name, answer)
        else:
            assert re.search(expected, answer.get("refused", "")), (name, answer)


def in_python(given: dict[str, Any]) -> dict[str, Any]:
    of = Opening.from_facts(given["opening"])
    anybody = Signer("anybody", b"\x01" * 32)
    cast = [
        (b["index"], b["at_ms"], Ballot.from_note(notes.parse(anybody.sign(b["text"]))))
        for b in given["ballots"]
    ]
    moved = [
        (m["index"], m["at_ms"], Motion.from_note(notes.parse(anybody.sign(m["text"]))))
        for m in given["motions"]
    ]
    count = tally(of, cast, given["now_ms"], moved)
    found = {"facts": count.facts, "phase": count.phase, "closes_ms": count.closes_ms}
    exact = json.loads(json.dumps(found | {"rules": of.rules_digest, "electorate": of.electorate_digest}))
    for weight in ("for", "against", "abstain", "turnout", "total"):
        exact["facts"][weight] = str(exact["facts"][weight])
    if "order" in exact["facts"]:
        scores = exact["facts"]["order"]["scores"]
        exact["facts"]["order"]["scores"] = {name: str(score) for name, score in scores.items()}
    return exact


def vote(chance: random.Random) -> dict[str, Any]:
    """A vote with any rules, and more or less sensible ballots and motions."""
    members = chance.sample(MEMBERS, chance.randint(1, 5))
    weights = chance.choice(((1,), (1, 2, 3), (1, 7, 333_333, 2**53 + 1, 2**60)))
    facts: dict[str, Any] = {
        "consortium": "demo",
        "proposal": "sha256:" + "ab" * 32,
        "number": 1,
        "electorate": {m: chance.choice(weights) for m in members},
        "quorum_percent": chance.randint(1, 100),
        "pass_percent": chance.choice((50, 66, 99, 100)),
        "opened_ms": 1000,
        "closes_ms": 61_000,
        "charter": "sha256:" + "cd" * 32,
    }
    later = {
        "share": chance.choice(("1/2", "2/3", "3/4", "1/1")),
        "members": chance.choice(("1/2", "2/3", "3/4")),
        "objection": "1/3",
        "extend_ms": chance.choice((1, 20_000)),
        "queue_ms": 5,
        "officers": ["größe", "acme"],
        "dormant": chance.sample(members, chance.randint(1, len(members))),
    }
    facts |= {name: later[name] for name in chance.sample(sorted(later), chance.randint(0, 4))}
    if roadmap := chance.random() < 0.6:
        facts |= {"candidates": ["int4", "fp8", "lean", "a-b"]} | (
            {"credits": 30} if chance.random() < 0.5 else {}
        )
    of = Opening.from_facts(facts)

    def choice() -> Any:
        if not roadmap or chance.random() < 0.1:
            return chance.choice(CHOICES)
        names = chance.sample([*of.candidates, "zzz"][: chance.randint(4, 5)], chance.randint(1, 4))
        if of.credits:
            return "credits " + ", ".join(f"{name} {chance.randint(1, 5)}" for name in names)
        return "rank " + " > ".join(names)

    ballots, motions = [], []
    quiet = chance.random() < 0.5
    for index in range(chance.randint(0, 12)):
        member, at_ms = chance.choice((*members, "zeta")), chance.randint(0, 60_000 if quiet else 80_000)
        if not quiet and chance.random() < 0.25:
            what = chance.choice(("discuss", "discuss", "resume", "veto"))
            text = Motion(
                consortium="demo",
                proposal=of.proposal,
                member=member,
                motion=what,
                reason="-",
                nonce="0" * 16,
            ).text
            motions.append({"index": index, "at_ms": at_ms, "text": text})
        else:
            other = {"rules": "sha256:" + "00" * 32} if chance.random() < 0.05 else {}
            cast = ballot(of, member, choice(), nonce=f"{chance.randint(0, 3):016x}", **other)
            ballots.append({"index": index, "at_ms": at_ms, "text": cast.compose()})
    times = sorted(one["at_ms"] for one in (*ballots, *motions))
    for index, at_ms in enumerate(times):
        next(one for one in (*ballots, *motions) if one["index"] == index)["at_ms"] = at_ms
    chance.shuffle(ballots)
    return {"opening": facts, "ballots": ballots, "motions": motions, "now_ms": chance.randint(0, 150_000)}


def mutated(chance: random.Random) -> bytes:
    """A note with something cut, put in, turned over or doubled, or with nothing changed that matters."""
    text = "hansa-test/v1\nconsortium demo\ntitle Größere Schritte\n"
    both = signer("acme").sign(text) + signer("beta").sign(text).split(b"\n\n")[1]
    note = bytearray(chance.choice((signer("acme").sign(text), both, both + both.split(b"\n\n")[1])))
    odd = (
        b"\n",
        b"\r\n",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xae",
        b" ",
        b"\xc2\xa0",
        b"\x00",
        b"=",
        "— ".encode(),
        b"\xff",
        b"\x1c",
    )
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
        at = chance.randrange(len(note))
        match chance.randrange(4):
            case 0:
                note[at] ^= 1 << chance.randrange(8)
            case 1:
                note[at:at] = chance.choice(odd)
            case 2:
                del note[at : at + chance.randint(1, 4)]
            case _:
                lines = bytes(note).split(b"\n")
                lines.insert(chance.randrange(len(lines)), chance.choice(lines))
                note = bytearray(b"\n".join(lines))
    return bytes(note)


def text_of(note: bytes, keys: list[notes.Verifier]) -> str | None:
    try:
        return open_note(note, keys).text
    except NoteError:
        return None
