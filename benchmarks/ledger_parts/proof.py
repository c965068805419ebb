"""How long it takes to check that one record stands in a journal of a million: the file, the path, the signatures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from commons import merkle
from commons.cosignature import Cosigner, with_cosignatures
from commons.log import Checkpoint, open_proof_file, proof_text
from commons.notes import Signer
from commons.witness_policy import Policy

_WITNESSES = 5


@dataclass(frozen=True)
class Checking:
    """Medians of many checks of one proof file, each from its text on."""

    records: int
    hashes: int
    """On the path."""
    ms: float
    """With the log's signature alone."""
    witnessed_ms: float
    """With the log's signature and five witnesses' cosignatures, of which the policy asks for three."""


def proof_check(records: int = 1_000_000, *, checks: int = 1000) -> Checking:
    """Build a tree of so many leaves in memory, prove one, and check the proof again and again."""
    log = Signer("bench", bytes(32))
    frontier = merkle.Frontier()
    nodes: dict[tuple[int, int], bytes] = {}
    for n in range(records):
        nodes.update({(level, i): value for level, i, value in frontier.append(merkle.leaf_hash(b"%d" % n))})
    index = records // 3
    path = merkle.inclusion_proof(index, records, lambda level, i: nodes[level, i])
    checkpoint = Checkpoint(log.name, records, frontier.root())
    witnesses = [Cosigner(Signer(f"witness-{n}", bytes([n] * 32))) for n in range(1, _WITNESSES + 1)]
    note = checkpoint.sign(log)
    cosigned = with_cosignatures(note, [w.cosign(checkpoint.text, 1_700_000_000) for w in witnesses])
    policy = Policy.of(log.verifier, [w.cosignatory for w in witnesses], 3)
    plain = proof_text(index, path, note, extra=b"%d" % index)
    witnessed = proof_text(index, path, cosigned, extra=b"%d" % index)
    return Checking(
        records,
        len(path),
        _median_ms(lambda: open_proof_file(plain, log.verifier), checks),
        _median_ms(lambda: open_proof_file(witnessed, log.verifier, policy), checks),
    )


def _median_ms(check: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter_ns()
        check()
        taken.append(time.perf_counter_ns() - started)
    return sorted(taken)[times // 2] / 1e6
