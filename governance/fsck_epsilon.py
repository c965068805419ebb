"""The auditor's reading of privacy spent: no site is asked for a noised update beyond what its charter lets it spend."""

from __future__ import annotations

from collections.abc import Iterable

from commons.charter import Charter
from commons.privacy.accounting import epsilon_after
from governance.fsck_findings import Findings, Rule


class Epsilon:
    """Told by `governance.fsck_rounds` of rounds that open and of updates that came."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._sent: dict[str, dict[tuple[str, int, str], float]] = {}
        """Site -> (run, round, update) -> noise multiplier."""

    def open(self, index: int, charter: Charter, sites: Iterable[str]) -> None:
        if charter.privacy.mode != "dp":
            return
        terms = charter.privacy.dp
        for site in sites:
            sent = [*self._sent.get(site, {}).values(), terms.noise_multiplier]
            would = epsilon_after(sent, terms.delta)
            what = f"assigns site {site}, which spends epsilon {would:.3f} with it, its charter allows {terms.epsilon_max:g}"
            self._findings.require(would <= terms.epsilon_max, Rule.ROUND, index, what)

    def sent(self, charter: Charter, run: str, number: int, site: str, update: str) -> None:
        """Admitted or rejected, it has left the site. `update`: digest of its note's text."""
        if charter.privacy.mode == "dp":
            key = (run, number, update)
            self._sent.setdefault(site, {})[key] = charter.privacy.dp.noise_multiplier
