"""What each site has spent of its privacy: the view that counts the updates that came under noise.

Folds CHARTER, ROUND, UPDATE and REJECTION records, over all runs. An update that was rejected has left its site all the
same. What never came, or not to its end, the site counts for itself (`workers.spending`).
"""

from __future__ import annotations

from commons import charter_file
from commons.charter import Charter
from commons.errors import Code, Refusal
from commons.names import SiteId
from commons.notes import parse
from commons.privacy.accounting import epsilon_after
from commons.privacy.terms import DP
from commons.records import Kind, Record
from commons.work import UpdateNote


class Noised:
    def __init__(self) -> None:
        self._multipliers: dict[int, float | None] = {}
        """Charter version -> its noise; None without."""
        self._rounds: dict[tuple[str, int], float | None] = {}
        self._sent: dict[SiteId, dict[tuple[str, int, str], float]] = {}
        """Site -> (run, round, digest of the update's note) -> its noise."""

    def apply(self, record: Record) -> None:
        match record.kind:
            case Kind.CHARTER:
                charter = charter_file.from_canonical(record.body)
                noised = charter.privacy.mode == "dp"
                self._multipliers[charter.version] = charter.privacy.dp.noise_multiplier if noised else None
            case Kind.ROUND:
                facts = record.facts
                self._rounds[facts["run"], facts["round"]] = self._multipliers.get(facts["charter_version"])
            case Kind.UPDATE:
                update = UpdateNote.from_note(parse(record.body))
                self._take(update.run, update.round, update.site, update.digest)
            case Kind.REJECTION if record.facts["update"]:
                facts = record.facts
                self._take(facts["run"], facts["round"], facts["site"], facts["update"])
            case _:
                pass

    def spent(self, site: SiteId, terms: DP, *, more: int = 0) -> float:
        """Epsilon at the terms' delta of all that the site has sent, and of `more` updates under these terms."""
        sent = self._sent.get(site, {}).values()
        return epsilon_after([*sent, *[terms.noise_multiplier] * more], terms.delta)

    def forbids(self, charter: Charter, site: SiteId, number: int) -> Refusal | None:
        """Why round `number` of a run goes on without the site: it would spend more than the charter allows."""
        if charter.privacy.mode != "dp":
            return None
        terms = charter.privacy.dp
        if (would := self.spent(site, terms, more=1)) <= terms.epsilon_max:
            return None
        message = (
            f"site {site} has spent epsilon {self.spent(site, terms):.3f} at delta {terms.delta:g}, round {number} would "
            f"make it {would:.3f}, epsilon_max is {terms.epsilon_max:g}: it sits out and the others go on; it is back once "
            "the members vote for more"
        )
        return Refusal(Code.EXCEEDS_EPSILON, message)

    def _take(self, run: str, number: int, site: str, update: str) -> None:
        multiplier = self._rounds.get((run, number))
        if multiplier is not None:
            self._sent.setdefault(SiteId(site), {})[run, number, update] = multiplier
