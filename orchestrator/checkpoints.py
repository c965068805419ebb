"""Which model states are kept on disk."""

from __future__ import annotations

from commons.names import Digest
from orchestrator.progress import Runs


def kept(runs: Runs) -> set[Digest]:
    """The last state of every run, of the latest one also its seed model, and of the active one momentum, what its last round
    began from and the bases of sites still at work. Whoever else still fetches an earlier base is late for a closed round.
    Nothing from before the experts last changed but the seed: what was retired is gone."""
    keep = {run.state for run in runs.by_id.values()}
    if runs.latest:
        keep |= {found.base for found in runs.latest.history[:1]}
    if active := runs.active:
        keep |= {found.base for found in active.history[-1:] if found.number >= active.remade}
        keep |= {active.history[number - 1].base for number in active.carried.values()}
        keep |= {active.momentum} if active.momentum else set()
    return keep
