"""What a site computes from its secrets: the deal it makes, the shares it is dealt, the masks it adds.

Knows nothing of what a site is bound to or when it may say something (`commons.masking.site`).
"""

from __future__ import annotations

from commons.masking.attempt import SharesNote
from commons.masking.derive import (
    Secrets,
    open_shares,
    pair_key,
    seal_shares,
    seed_commitment,
    self_key,
    share_commitments,
)
from commons.masking.roster import Deal, Deals, Dealt, Roster
from commons.masking.shamir import split
from commons.masking.streams import Stream
from commons.notes import Signer, digest


def deal_shares(secrets: Secrets, signer: Signer, roster: Roster) -> Deal:
    """Shares of the site's mask key and seed for everybody in the roster; the same bytes each time."""
    attempt, dealer = roster.attempt, secrets.site
    shares = dict(zip(roster.names, _shares(secrets, roster), strict=True))
    parts = [
        bytes.fromhex(said.removeprefix("sha256:"))
        for name, both in shares.items()
        for said in share_commitments(both, attempt, dealer, name)
    ]
    parts += [
        seal_shares(
            both,
            own=secrets.channel,
            peer=roster.channel(name),
            attempt=attempt,
            roster=roster.digest,
            sender=dealer,
            receiver=name,
        )
        for name, both in shares.items()
        if name != dealer
    ]
    bundle = b"".join(parts)
    note = SharesNote(
        **vars(attempt),
        site=dealer,
        roster=roster.digest,
        threshold=roster.threshold,
        seed=seed_commitment(secrets.seed(roster.digest), attempt, dealer),
        bundle=digest(bundle),
    )
    return Deal(signer.sign(note.text), bundle)


def open_deal(secrets: Secrets, dealt: Dealt) -> tuple[int, int] | None:
    """This site's shares of a dealer's (mask key, seed); None when they are not what the dealer committed to."""
    roster, dealer, own = dealt.roster, dealt.note.site, secrets.site
    if dealer == own:
        return _shares(secrets, roster)[roster.number(own) - 1]
    shares = open_shares(
        dealt.sealed(own),
        own=secrets.channel,
        peer=roster.channel(dealer),
        attempt=roster.attempt,
        roster=roster.digest,
        sender=dealer,
        receiver=own,
    )
    if shares is None or share_commitments(shares, roster.attempt, dealer, own) != dealt.commitments(own):
        return None
    return shares


def streams(secrets: Secrets, deals: Deals) -> list[Stream]:
    """The site's masks: its own, and one with each other dealer, added by the first in order of name of the two."""
    roster, own = deals.roster, secrets.site
    seed = secrets.seed(roster.digest)
    found = [Stream(self_key(seed, attempt=roster.attempt, deals=deals.digest, site=own), added=True)]
    for peer in deals.names:
        if peer != own:
            key = pair_key(
                secrets.mask,
                roster.mask(peer),
                attempt=roster.attempt,
                deals=deals.digest,
                sites=(own, peer),
            )
            found.append(Stream(key, added=own < peer))
    return found


def _shares(secrets: Secrets, roster: Roster) -> list[tuple[int, int]]:
    """Everybody's shares of the site's (mask key, seed), in order of name."""
    count, drawn = len(roster.names), roster.threshold - 1
    keys = split(secrets.mask_number(), secrets.coefficients("mask key", roster.digest, drawn), count)
    seeds = split(secrets.seed(roster.digest), secrets.coefficients("seed", roster.digest, drawn), count)
    return list(zip(keys, seeds, strict=True))
