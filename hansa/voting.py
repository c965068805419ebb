"""A member's proposals and ballots: made, signed with the member's own key, handed in through its seat."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from commons import charter_file, features
from commons.ballots import Ballot, Choice, Proposal
from commons.errors import ConfigError, HansaError, Refusal, Refused
from commons.identity import load_signer
from commons.names import Digest, ProposalId
from commons.notes import NoteError, Signer
from commons.views import CharterView, ProposalsView, ProposalView
from governance.quotes import Quote
from hansa.chamber import Chamber
from hansa.joining import MEMBER_KEY
from hansa.quoting import currency_of, quote_change
from hansa.settings import read_settings, split_settings


def propose(
    chamber: Chamber,
    signer: Signer,
    *,
    feature: str,
    parameters: Mapping[str, Any],
    title: str,
    effective_round: int,
) -> ProposalView:
    """Sign and hand in a proposal on the charter in force. Raises Refused before sending what cannot pass a check."""
    charter = chamber.read(CharterView)
    current = charter_file.from_canonical(charter.text.encode())
    for wrong in (
        features.apply(current, feature, parameters),
        features.may_not_propose(current, feature, parameters, signer.name),
    ):
        if isinstance(wrong, Refusal):
            raise Refused(wrong)
    proposal = Proposal(
        consortium=chamber.seat.consortium,
        proposer=signer.name,
        title=title or _title(feature, parameters),
        feature=feature,
        parameters=parameters,
        charter=Digest(charter.digest),
        effective_round=effective_round,
        nonce=secrets.token_hex(16),
    )
    try:
        chamber.submit(signer.sign(proposal.compose()))
    except NoteError as error:
        raise ConfigError([f"the proposal cannot be written down: {error}"]) from None
    return chamber.read(ProposalView, proposal.id)


def cast(chamber: Chamber, signer: Signer, view: ProposalView, choice: Choice) -> ProposalView:
    """Sign and hand in a ballot on what `view` shows; the proposal as it stands afterwards."""
    ballot = Ballot(
        consortium=chamber.seat.consortium,
        proposal=ProposalId(view.id),
        rules=Digest(view.rules),
        electorate=Digest(view.electorate_digest),
        voter=signer.name,
        choice=choice,
        nonce=secrets.token_hex(16),
        cast_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    chamber.submit(signer.sign(ballot.compose()))
    return chamber.read(ProposalView, view.id)


def open_proposal(
    seat: Path,
    key: Path | None,
    *,
    feature: str,
    settings: Sequence[str],
    title: str,
    effective_round: int,
    before_signing: Callable[[Quote], None],
) -> ProposalView:
    """`hansa proposal open`. `before_signing` is given what the change costs."""
    pairs = split_settings(settings)
    with Chamber.at(seat) as chamber:
        parameters = read_settings(feature, pairs, currency_of(chamber))
    return open_change(
        seat,
        key,
        feature=feature,
        parameters=parameters,
        title=title,
        effective_round=effective_round,
        before_signing=before_signing,
    )


def open_change(
    seat: Path,
    key: Path | None,
    *,
    feature: str,
    parameters: Mapping[str, Any],
    title: str,
    effective_round: int,
    before_signing: Callable[[Quote], None],
) -> ProposalView:
    """The same with parameters as the feature has them."""
    with Chamber.at(seat) as chamber:
        signer = member_key(seat, key)
        before_signing(quote_change(chamber, feature, parameters, effective_round=effective_round))
        return propose(
            chamber,
            signer,
            feature=feature,
            parameters=parameters,
            title=title,
            effective_round=effective_round,
        )


def cast_ballot(seat: Path, key: Path | None, *, which: str, choice: Choice) -> ProposalView:
    """`hansa proposal vote`."""
    with Chamber.at(seat) as chamber:
        return cast(chamber, member_key(seat, key), find_proposal(chamber, which), choice)


def find_proposal(chamber: Chamber, which: str) -> ProposalView:
    """By number (`1`, `P-0001`) or id. Raises HansaError naming what there is."""
    if which.startswith("sha256:"):
        return chamber.read(ProposalView, which)
    number = which.upper().removeprefix("P-")
    known = chamber.read(ProposalsView).proposals
    found = next((p for p in known if number.isdecimal() and p.number == int(number)), None)
    if found is None:
        there = ", ".join(f"P-{p.number:04d}" for p in known) or "none"
        raise HansaError(f"there is no proposal {which!r}; there are: {there}")
    return chamber.read(ProposalView, found.id)


def member_key(seat: Path, key: Path | None) -> Signer:
    """The key given, or the one kept in the seat. Raises HansaError when there is neither."""
    if key is None and not (seat / MEMBER_KEY).exists():
        raise HansaError(
            f"{seat} holds no {MEMBER_KEY}: only members sign proposals and ballots; name yours with --key"
        )
    return load_signer(key or seat / MEMBER_KEY)


def _title(feature: str, parameters: Mapping[str, Any]) -> str:
    return f"{feature} " + ", ".join(f"{k}={v}" for k, v in parameters.items())
