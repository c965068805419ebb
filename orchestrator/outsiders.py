"""Witnesses that are no site, asked over HTTP as C2SP tlog-witness says: one thread for each that the charter names.

Believes nothing of an answer but a cosignature that holds. An outsider that is away, or refuses, holds up nobody but
the quorum that needs it.
"""

from __future__ import annotations

import logging
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException

from commons.cosignature import Cosignatory, cosignature
from commons.errors import HansaError, Unreachable
from commons.notes import NoteError
from commons.witness import request_text
from commons.witnessed import Outsider
from orchestrator.witnesses import Candidate, Witnesses

log = logging.getLogger("hansa.coordinator")

ANSWER_S = 5.0
ANSWER_BYTES_MAX = 16_384
PAUSE_S = 1.0
"""Between two requests to one outsider; doubled after each failure, to `LONGEST_PAUSE_S`."""
LONGEST_PAUSE_S = 60.0

Proof = Callable[[int, int], tuple[bytes, ...]]
"""(old size, new size) -> consistency proof."""


def follow_outsiders(witnesses: Witnesses) -> None:
    """Have every outsider of the charter in force asked, until the coordinator stops."""
    asked: dict[Outsider, threading.Thread] = {}
    while not witnesses.stopping.is_set():
        strokes = witnesses.bell.strokes
        for outsider in witnesses.charter.witnesses.outsiders:
            if outsider not in asked or not asked[outsider].is_alive():
                name = f"outsider-{outsider.name}"
                asked[outsider] = threading.Thread(
                    target=_follow, args=(witnesses, outsider), name=name, daemon=True
                )
                asked[outsider].start()
        witnesses.bell.wait_beyond(strokes)


class HttpWitness:
    """One outsider. Remembers which size it cosigned last, as far as it told. Not for several threads."""

    def __init__(self, outsider: Outsider) -> None:
        self.cosignatory = Cosignatory.from_vkey(outsider.vkey)
        self._url = f"{outsider.url.rstrip('/')}/add-checkpoint"
        self._name = f"outsider {outsider.name} at {outsider.url}"
        self._size = 0

    def ask(self, candidate: Candidate, proof: Proof) -> str:
        """Its signature line over the candidate. Raises Unreachable, or HansaError when it refuses or errs."""
        for _ in range(2):
            if self._size > candidate.size:
                raise HansaError(
                    f"{self._name} has cosigned {self._size} records, this journal shows it {candidate.size}: one of "
                    "the two is an older copy, or there are two journals of this name; compare their checkpoints"
                )
            request = request_text(self._size, proof(self._size, candidate.size), candidate.note)
            status, body = self._post(request)
            if status == 200:
                line = self._line(body, candidate)
                self._size = candidate.size
                return line
            if status != 409 or not re.fullmatch(r"(0|[1-9][0-9]{0,18})\n", body):
                raise HansaError(
                    f"{self._name} does not cosign {candidate.size} records ({status}): {body[:200].strip()!r}"
                )
            self._size = int(body)
        raise HansaError(
            f"{self._name} has cosigned {self._size} records meanwhile; is it asked by two journals?"
        )

    def _line(self, body: str, candidate: Candidate) -> str:
        for line in body.splitlines(keepends=True):
            try:
                cosignature(line, candidate.text, self.cosignatory)
            except NoteError:
                continue  # another key's line, or none: C2SP has them ignored
            return line
        raise HansaError(f"{self._name} answered without a cosignature of {self.cosignatory.vkey}")

    def _post(self, body: bytes) -> tuple[int, str]:
        request = urllib.request.Request(self._url, body, {"Content-Type": "text/plain; charset=utf-8"})
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                return answer.status, answer.read(ANSWER_BYTES_MAX).decode("utf-8", "replace")
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read(ANSWER_BYTES_MAX).decode("utf-8", "replace")
        except (OSError, HTTPException) as failed:
            raise Unreachable(f"{self._name} cannot be reached: {failed}") from failed


def _follow(witnesses: Witnesses, outsider: Outsider) -> None:
    """Ask one outsider for each candidate it can follow, as long as the charter names it."""
    witness, told, pause_s, asked = HttpWitness(outsider), "", PAUSE_S, 0
    while not witnesses.stopping.is_set() and outsider in witnesses.charter.witnesses.outsiders:
        strokes = witnesses.bell.strokes
        candidate, wait_s = witnesses.candidate()
        if candidate is None or candidate.size <= asked:
            witnesses.bell.wait_beyond(strokes, wait_s)
            continue
        try:
            line = witness.ask(candidate, witnesses.proof)
            if witnesses.stopping.is_set():
                return
            witnesses.take(witness.cosignatory, candidate.size, line)
            trouble, pause_s, asked = "", PAUSE_S, candidate.size
        except HansaError as error:
            trouble, pause_s = str(error), min(2 * pause_s, LONGEST_PAUSE_S)
        if trouble and trouble != told:
            log.warning("%s", trouble)
        elif told and not trouble:
            log.info("outsider %s cosigns again", outsider.name)
        told = trouble
        witnesses.stopping.wait(pause_s)
