"""A member's proposals and ballots: made, signed with the member's own key, handed in through its seat."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonpatch import JsonPatchException
from jsonpointer import JsonPointerException

from commons import charter_file, features
from commons.ballots import Proposal
from commons.charter import Charter
from commons.errors import ConfigError, HansaError, Refused
from commons.features.patching import patch_parameters
from commons.identity import load_signer
from commons.motions import BallotKey, Motion, Pause
from commons.names import Digest
from commons.notes import NOTE_BYTES_MAX, NoteError, Signer, Verifier, parse
from commons.views import CharterView, ProposalsView, ProposalView
from commons.work import Words
from governance.casting import ballot_text
from governance.quoting import Preview, charter_in_force, preview
from hansa.chamber import Chamber
from hansa.joining import MEMBER_KEY
from hansa.settings import read_settings, split_settings

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
    charter = chamber.read(CharterView)
    current = charter_file.from_canonical(charter.text.encode())
    wrong = features.check(current, feature, parameters)
    wrong = wrong or features.may_not_propose(current, feature, parameters, signer.name)
    if wrong:
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


def cast(
    chamber: Chamber, signer: Signer, view: ProposalView, choice: str, *, reason: str = ""
) -> ProposalView:
    """Sign and hand in a ballot on what `view` shows; the proposal as it stands afterwards."""
    voter = signer.name.partition("/")[0]
    note = ballot_text(chamber.seat.consortium, voter, view, choice, reason=reason)
    chamber.submit(signer.sign(note))
    return chamber.read(ProposalView, view.id)


def open_proposal(
    seat: Path,
    key: Path | None,
    *,
    feature: str,
    settings: Sequence[str],
    title: str,
    effective_round: int,
    before_signing: Callable[[Preview], None],
    patch: Path | None = None,
) -> ProposalView:
    """`hansa proposal open`. `before_signing` is given what the change changes and costs. `patch`: a file of RFC 6902
    operations, for the feature config-patch."""
    pairs = split_settings(settings)
    with Chamber.at(seat) as chamber:
        signer = member_key(seat, key)
        parameters = read_settings(feature, pairs, currency_of(chamber))
        if patch is not None:
            parameters |= read_patch(charter_in_force(chamber), patch)
        before_signing(preview(chamber, feature, parameters, effective_round))
        return propose(
            chamber,
            signer,
            feature=feature,
            parameters=parameters,
            title=title,
            effective_round=effective_round,
        )


def cast_ballot(seat: Path, key: Path | None, *, which: str, choice: str, reason: str = "") -> ProposalView:
    """`hansa proposal vote`."""
    with Chamber.at(seat) as chamber:
        return cast(chamber, member_key(seat, key), find_proposal(chamber, which), choice, reason=reason)


def unsigned_ballot(seat: Path, *, which: str, choice: str, reason: str = "") -> str:
    """What to sign on another machine, by `hansa key sign`."""
    with Chamber.at(seat) as chamber:
        voter = chamber.seat.subject.partner
        view = find_proposal(chamber, which)
        return ballot_text(chamber.seat.consortium, voter, view, choice, reason=reason)


def hand_in(seat: Path, file: Path) -> int:
    """A note that was signed elsewhere; its journal index. Raises ConfigError when the file is no signed note."""
    try:
        data = file.read_bytes() if file.stat().st_size <= NOTE_BYTES_MAX else b""
        parse(data)
    except OSError as error:
        raise ConfigError([f"{file}: {error.strerror}"]) from None
    except NoteError as error:
        raise ConfigError([f"{file}: {error} (sign the text with `hansa key sign`)"]) from None
    with Chamber.at(seat) as chamber:
        return chamber.submit(data)


def move(seat: Path, key: Path | None, *, which: str, motion: MotionName, reason: str) -> ProposalView:
    """Sign and hand in a motion on a proposal; the proposal as it stands afterwards."""
    with Chamber.at(seat) as chamber:
        signer, view = member_key(seat, key), find_proposal(chamber, which)
        note = Motion(
            consortium=chamber.seat.consortium,
            proposal=view.id,
            member=signer.name,
            motion=motion,
            reason=reason or "-",
            nonce=secrets.token_hex(16),
        )
        chamber.submit(_signed(signer, note))
        return chamber.read(ProposalView, view.id)


def pause_rounds(seat: Path, key: Path | None, reason: str) -> int:
    """`hansa run pause`; the journal index."""
    with Chamber.at(seat) as chamber:
        signer = member_key(seat, key)
        note = Pause(
            consortium=chamber.seat.consortium,
            member=signer.name,
            reason=reason,
            nonce=secrets.token_hex(16),
        )
        return chamber.submit(_signed(signer, note))


def delegate_ballots(seat: Path, key: Path | None, ballot_key: Verifier, days: int) -> tuple[int, int]:
    """(journal index, expiry in Unix ms) of the delegation; 0 days take the key away."""
    expires_ms = time.time_ns() // 1_000_000 + days * 86_400_000
    with Chamber.at(seat) as chamber:
        signer = member_key(seat, key)
        note = BallotKey(
            consortium=chamber.seat.consortium,
            member=signer.name,
            key=ballot_key.vkey,
            expires_ms=expires_ms,
            nonce=secrets.token_hex(16),
        )
        return chamber.submit(_signed(signer, note)), expires_ms


def _signed(signer: Signer, note: Words) -> bytes:
    try:
        return signer.sign(note.text)
    except NoteError as error:
        raise ConfigError([f"it cannot be written down: {error}"]) from None


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


def member_key(seat: Path, key: Path | None) -> Signer:
    """The key given, or the one kept in the seat. Raises HansaError when there is neither."""
    if key is None and not (seat / MEMBER_KEY).exists():
        raise HansaError(
            f"{seat} holds no {MEMBER_KEY}: only members sign proposals and ballots; name yours with --key"
        )
    return load_signer(key or seat / MEMBER_KEY)


def _title(feature: str, parameters: Mapping[str, Any]) -> str:
    return f"{feature} {', '.join(f'{k}={v}' for k, v in parameters.items())}".strip()
