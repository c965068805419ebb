"""A site's side of a masked sum: five steps, each of which the site checks before it says anything.

Secure aggregation with double masking after Bonawitz et al. (CCS 2017), against a coordinator that does not keep to
the protocol. No IO, no clock and no random numbers: everything is derived from the site's secret and the attempt, so a
site that was killed takes the steps again and says the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from commons.errors import Code, Refusal
from commons.masking.attempt import (
    AgreementNote,
    Attempt,
    ComplaintNote,
    KeysNote,
    RevealNote,
    SurvivorsNote,
)
from commons.masking.dealing import deal_shares, open_deal, streams
from commons.masking.derive import KEY_BYTES, Secrets
from commons.masking.roster import Deal, Deals, Roster
from commons.masking.streams import Masker
from commons.masking.survivors import Reveal, check_agreed, read_survivors, refused
from commons.names import Digest
from commons.notes import Signer, Verifier, digest
from commons.privacy.terms import SecAgg


@dataclass(frozen=True)
class Bound:
    """What a site has bound itself to in its newest attempt of a run.

    The site keeps it beside its secret, durably, before anything it said under it leaves the house; whoever loses one
    loses the other.
    """

    attempt: Attempt
    roster: str | None = None
    deals: str | None = None
    survivors: str | None = None
    """Digests of the only ones it answers to."""

    def to_text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Bound:
        """Read what `to_text` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        found = json.loads(text)
        return cls(Attempt(**found.pop("attempt")), **found)


class SiteMasking:
    """One site in one attempt. After each step that answers no Refusal, keep `bound` before sending the answer."""

    def __init__(
        self,
        attempt: Attempt,
        *,
        terms: SecAgg,
        site: str,
        signer: Signer,
        secret: bytes,
        sites: Mapping[str, Verifier],
        log: Verifier,
        bound: Bound | None = None,
    ) -> None:
        """Use `begin`, which checks `bound` first.

        `sites`: the key of every site that may take part, as proven from members' words, this one's too; `log`: the
        coordinator's. `terms`: the charter's.
        """
        self.bound = bound or Bound(attempt)
        self._attempt = attempt
        self._site = site
        self._signer = signer
        self._sites = sites
        self._log = log
        self._terms = terms
        self._secrets = Secrets(secret, attempt, site)

        self._roster: Roster | None = None
        self._shown: Digest | None = None
        self._deals: Deals | None = None
        self._held: dict[str, tuple[int, int]] = {}

    @classmethod
    def begin(
        cls,
        attempt: Attempt,
        *,
        terms: SecAgg,
        site: str,
        signer: Signer,
        secret: bytes,
        sites: Mapping[str, Verifier],
        log: Verifier,
        bound: Bound | None,
    ) -> SiteMasking | Refusal:
        """Take up an attempt, new or again. `bound`: what the site is bound to in this run, None in its first attempt.

        Refused: an attempt older than the one bound to; another attempt of a round in which the site has answered to
        a survivor list, as two sums over different crowds show who made the difference.
        """
        if bound is not None and bound.attempt != attempt:
            newest = bound.attempt
            assert newest.run == attempt.run, "what binds a site is kept for each run"
            if (attempt.round, attempt.attempt) <= (newest.round, newest.attempt):
                return _attempt_refused(f"{attempt} is asked for after {newest}")
            if attempt.round == newest.round and bound.survivors is not None:
                return _attempt_refused(f"{attempt} is asked for after a survivor list of {newest}")
            bound = None
        return cls(
            attempt,
            terms=terms,
            site=site,
            signer=signer,
            secret=secret,
            sites=sites,
            log=log,
            bound=bound,
        )

    def keys(self) -> bytes:
        """Step 1: announce this site's public keys; a signed `KeysNote`."""
        return self._signer.sign(self._announced().text)

    def deal(self, notes: Sequence[bytes]) -> Deal | Refusal:
        """Step 2: check everybody's keys, deal shares of this site's two secrets to everybody."""
        roster = Roster.read(notes, attempt=self._attempt, sites=self._sites, terms=self._terms)
        if isinstance(roster, Refusal):
            return roster
        if roster.keys.get(self._site) != self._announced():
            return Refusal(
                Code.MASK_KEYS_INVALID,
                f"{self._site} does not stand in the roster with the keys it announced; "
                "begin another attempt with all announced keys, or without it",
                {"site": self._site},
            )
        if self.bound.roster not in (None, roster.digest):
            return _attempt_refused(f"a second, different roster is shown in {self._attempt}")
        self._roster, self.bound = roster, replace(self.bound, roster=roster.digest)
        return deal_shares(self._secrets, self._signer, roster)

    def masker(self, deals: Sequence[Deal]) -> Masker | Refusal:
        """Step 3: open what everybody dealt to this site; the masks for its update, for one thread at a time.

        When a peer's shares cannot be used, the Refusal's details name it as `site`: `complain` then. Needs `deal`
        before it, also after a restart.
        """
        roster = self._roster
        if roster is None:
            return _attempt_refused(f"shares are shown before the roster in {self._attempt}")
        found = Deals.read(deals, roster=roster, sites=self._sites)
        if isinstance(found, Refusal):
            return found
        own = deal_shares(self._secrets, self._signer, roster)
        if self._site not in found.dealt or found.dealt[self._site].bundle != own.bundle:
            return _attempt_refused(f"{self._site} does not stand among the deals with what it dealt")
        if self.bound.deals not in (None, found.digest):
            return _attempt_refused(f"second, different deals are shown in {self._attempt}")
        self._shown = found.digest
        held: dict[str, tuple[int, int]] = {}
        for name, dealt in found.dealt.items():
            shares = open_deal(self._secrets, dealt)
            if shares is None:
                return Refusal(
                    Code.MASK_SHARES_INVALID,
                    f"the shares that {name} dealt to {self._site} are not the ones it committed to; "
                    f"the coordinator begins another attempt without {name}, or goes on without {self._site}",
                    {"site": name},
                )
            held[name] = shares
        self._deals, self._held = found, held
        self.bound = replace(self.bound, deals=found.digest)
        return Masker(streams(self._secrets, found))

    def complain(self, accused: str) -> bytes:
        """Instead of step 3: say whose shares could not be used; a signed `ComplaintNote`. This site masks nothing."""
        assert self._shown is not None, "a complaint is about deals that were shown"
        note = ComplaintNote(**vars(self._attempt), site=self._site, accused=accused, deals=self._shown)
        return self._signer.sign(note.text)

    def agree(self, survivors: bytes) -> bytes | Refusal:
        """Step 4: check the survivor list and agree to it, once; a signed `AgreementNote`."""
        said = self._survivors(survivors)
        if isinstance(said, Refusal):
            return said
        if self._site not in said.survivors:
            return refused(f"{self._site} is no survivor and does not agree to a list")
        self.bound = replace(self.bound, survivors=said.digest)
        note = AgreementNote(**vars(self._attempt), site=self._site, survivors=said.digest)
        return self._signer.sign(note.text)

    def reveal(self, survivors: bytes, agreements: Sequence[bytes]) -> Reveal | Refusal:
        """Step 5: under a list that as many survivors as the threshold agreed to, one share of each dealer.

        A dropped site may answer too: it helps to find the sum of the others.
        """
        said = self._survivors(survivors)
        if isinstance(said, Refusal):
            return said
        assert self._deals is not None, "a survivor list is checked against the deals"
        wrong = check_agreed(agreements, survivors=said, deals=self._deals, sites=self._sites)
        if wrong is not None:
            return wrong
        self.bound = replace(self.bound, survivors=said.digest)
        shares = b"".join(
            self._held[name][name in said.survivors].to_bytes(KEY_BYTES, "big") for name in self._deals.names
        )
        note = RevealNote(
            **vars(self._attempt), site=self._site, survivors=said.digest, shares=digest(shares)
        )
        return Reveal(self._signer.sign(note.text), shares)

    def _announced(self) -> KeysNote:
        channel, mask = (
            key.public_key().public_bytes_raw().hex() for key in (self._secrets.channel, self._secrets.mask)
        )
        return KeysNote(**vars(self._attempt), site=self._site, channel=channel, mask=mask)

    def _survivors(self, data: bytes) -> SurvivorsNote | Refusal:
        if self._deals is None:
            return refused(f"{self._site} has masked nothing in {self._attempt}")
        said = read_survivors(data, deals=self._deals, log=self._log)
        if isinstance(said, SurvivorsNote) and self.bound.survivors not in (None, said.digest):
            return refused(f"a second, different survivor list is shown in {self._attempt}")
        return said


def _attempt_refused(message: str) -> Refusal:
    return Refusal(
        Code.MASK_ATTEMPT_REFUSED,
        f"{message}; this site masks and reveals nothing for it, the coordinator begins a later attempt or round",
    )
