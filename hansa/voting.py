"""A member's proposals, ballots, pledges and motions: the texts to sign, and handing them in through its seat."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonpatch import JsonPatchException
from jsonpointer import JsonPointerException

from commons import charter_file, features
from commons.ballot_weights import DAY_MS
from commons.ballots import Proposal
from commons.charter import Charter
from commons.errors import ConfigError, HansaError, Refused
from commons.features.patching import patch_parameters
from commons.motions import BallotKey, Motion, Pause
from commons.names import Digest
from commons.notes import NOTE_BYTES_MAX, NoteError, Signer, Verifier, parse
from commons.pledging import Pledge
from commons.views import CharterView, ProposalsView, ProposalView
from governance.casting import ballot_text
from governance.quoting import Preview, charter_in_force, preview
from hansa.chamber import Chamber
from hansa.settings import Pair, read_micro, read_settings
from hansa.signing import Signing, read_note, say

MotionName = Literal["withdraw", "discuss", "resume", "veto"]


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
    proposal = proposal_of(
        chamber,
        signer.name,
        feature=feature,
        parameters=parameters,
        title=title,
        effective_round=effective_round,
    )
    chamber.submit(signer.sign(proposal.compose()))
    return chamber.read(ProposalView, proposal.id)


def proposal_of(
    chamber: Chamber,
    proposer: str,
    *,
    feature: str,
    parameters: Mapping[str, Any],
    title: str,
    effective_round: int,
    needs_micro: int = 0,
) -> Proposal:
    """A proposal on the charter in force, not yet signed. Raises Refused for what cannot pass a check."""
    charter = chamber.read(CharterView)
    current = charter_file.from_canonical(charter.text.encode())
    wrong = features.check(current, feature, parameters)
    wrong = wrong or features.may_not_propose(current, feature, parameters, proposer)
    if wrong:
        raise Refused(wrong)
    return Proposal(
        consortium=chamber.seat.consortium,
        proposer=proposer,
        title=title or _title(feature, parameters),
        feature=feature,
        parameters=parameters,
        charter=Digest(charter.digest),
        effective_round=effective_round,
        nonce=secrets.token_hex(16),
        needs_micro=needs_micro,
    )


def cast(
    chamber: Chamber, signer: Signer, view: ProposalView, choice: str, *, reason: str = ""
) -> ProposalView:
    """Sign and hand in a ballot on what `view` shows; the proposal as it stands afterwards."""
    voter = signer.name.partition("/")[0]
    note = ballot_text(chamber.seat.consortium, voter, view, choice, reason=reason)
    chamber.submit(signer.sign(note))
    return chamber.read(ProposalView, view.id)


@dataclass(frozen=True)
class Wish:
    """What a member types of a proposal."""

    feature: str
    settings: Sequence[Pair]
    title: str = ""
    effective_round: int = 1
    needs: str = ""
    """Pledges without which it is not carried out: `5 EUR`; empty: none."""
    patch: Path | None = None
    """A file of RFC 6902 operations, for the feature config-patch."""


def open_proposal(
    chamber: Chamber, signing: Signing, wish: Wish, before_signing: Callable[[Preview], None]
) -> ProposalView | str:
    """`hansa proposal open`: the proposal, or the text to sign. `before_signing` is given what it changes and costs."""
    if signing.submit is not None:
        data = read_note(signing.submit)
        try:
            said = Proposal.from_note(parse(data))
        except NoteError as error:
            raise ConfigError([f"{signing.submit}: {error}"]) from None
        before_signing(preview(chamber, said.feature, said.parameters, said.effective_round))
        chamber.submit(data)
        return chamber.read(ProposalView, said.id)
    currency = currency_of(chamber)
    parameters = read_settings(wish.feature, wish.settings, currency)
    if wish.patch is not None:
        parameters |= read_patch(charter_in_force(chamber), wish.patch)
    before_signing(preview(chamber, wish.feature, parameters, wish.effective_round))
    made: list[Proposal] = []

    def make(member: str) -> str:
        made.append(
            proposal_of(
                chamber,
                member,
                feature=wish.feature,
                parameters=parameters,
                title=wish.title,
                effective_round=wish.effective_round,
                needs_micro=read_micro(wish.needs, currency) if wish.needs else 0,
            )
        )
        return made[0].compose()

    text = say(chamber, signing, make)
    return text if isinstance(text, str) else chamber.read(ProposalView, made[0].id)


def pledge_text(chamber: Chamber, member: str, view: ProposalView, *, amount: str, to: str, days: int) -> str:
    """A promise of `amount` for the budget of `to` (empty: the proposer's), if the proposal becomes law within days."""
    note = Pledge(
        consortium=chamber.seat.consortium,
        proposal=view.id,
        member=member,
        to=to or view.proposer,
        amount_micro=read_micro(amount, currency_of(chamber)),
        expires_ms=time.time_ns() // 1_000_000 + days * DAY_MS,
        nonce=secrets.token_hex(16),
    )
    return note.text


def motion_text(chamber: Chamber, member: str, view: ProposalView, motion: MotionName, reason: str) -> str:
    note = Motion(
        consortium=chamber.seat.consortium,
        proposal=view.id,
        member=member,
        motion=motion,
        reason=reason or "-",
        nonce=secrets.token_hex(16),
    )
    return note.text


def pause_text(chamber: Chamber, member: str, reason: str) -> str:
    """`hansa run pause`."""
    note = Pause(
        consortium=chamber.seat.consortium, member=member, reason=reason, nonce=secrets.token_hex(16)
    )
    return note.text


def ballot_key_text(chamber: Chamber, member: str, ballot_key: Verifier, expires_ms: int) -> str:
    note = BallotKey(
        consortium=chamber.seat.consortium,
        member=member,
        key=ballot_key.vkey,
        expires_ms=expires_ms,
        nonce=secrets.token_hex(16),
    )
    return note.text


def read_patch(charter: Charter, file: Path) -> dict[str, Any]:
    """The parameters of config-patch. Raises ConfigError for a file that is no patch of this charter."""
    try:
        found = json.loads(file.read_bytes() if file.stat().st_size <= NOTE_BYTES_MAX else b"")
        return patch_parameters(charter, found)
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror}"]) from None
    except (ValueError, TypeError, KeyError, JsonPatchException, JsonPointerException) as error:
        raise ConfigError(
            [f"{file} is no JSON patch of charter version {charter.version}: {error}"]
        ) from None


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


def currency_of(chamber: Chamber) -> str:
    """Of the charter our partner signed: no vote changes it."""
    return charter_file.from_canonical(chamber.seat.charter).rate_card.currency


def _title(feature: str, parameters: Mapping[str, Any]) -> str:
    return f"{feature} {', '.join(f'{k}={v}' for k, v in parameters.items())}".strip()
