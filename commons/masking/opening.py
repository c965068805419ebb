"""Putting revealed secrets together: what hides the sum of the survivors, and nothing else.

Every secret is checked against what its owner announced before anybody masked; an owner whose shares make another one
has dealt falsely and is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from commons.errors import Code, Refusal
from commons.masking.attempt import SurvivorsNote
from commons.masking.derive import mask_key, pair_key, seed_commitment, self_key
from commons.masking.roster import Deals
from commons.masking.shamir import PRIME, weights
from commons.masking.streams import Stream


def opening_streams(
    deals: Deals, survivors: SurvivorsNote, shares: Mapping[str, Sequence[int]]
) -> tuple[Stream, ...] | Refusal:
    """The survivors' own masks, and the masks they share with each dropped site, each to be taken back.

    `shares`: site -> its checked share of every dealer's secret, in order of name; from at least as many sites as the
    threshold.
    """
    roster = deals.roster
    used = sorted(shares)[: roster.threshold]
    factors = weights([roster.number(site) for site in used])
    found: list[Stream] = []
    for position, dealer in enumerate(deals.names):
        secret = sum(f * shares[site][position] for f, site in zip(factors, used, strict=True)) % PRIME
        if dealer in survivors.survivors:
            if seed_commitment(secret, roster.attempt, dealer) != deals.dealt[dealer].note.seed:
                return _dealt_falsely(dealer, "seed")
            key = self_key(secret, attempt=roster.attempt, deals=deals.digest, site=dealer)
            found.append(Stream(key, added=False))
            continue
        private = mask_key(secret)
        if private.public_key().public_bytes_raw() != roster.mask(dealer):
            return _dealt_falsely(dealer, "mask key")
        for survivor in survivors.survivors:
            key = pair_key(
                private,
                roster.mask(survivor),
                attempt=roster.attempt,
                deals=deals.digest,
                sites=(dealer, survivor),
            )
            found.append(Stream(key, added=dealer < survivor))
    return tuple(found)


def _dealt_falsely(dealer: str, what: str) -> Refusal:
    return Refusal(
        Code.MASK_SHARES_INVALID,
        f"the shares that {dealer} dealt do not make the {what} it announced: its word is broken and the sum is lost; "
        f"begin another round without {dealer}",
        {"site": dealer},
    )
