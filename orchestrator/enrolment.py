"""Letting partners in: invites handed out, each good for one key, and the certificate given in return."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from commons import charter_file
from commons.certificates import ends_ms
from commons.errors import Code, Refusal
from commons.identity import (
    Authority,
    CertificateError,
    Invite,
    Subject,
    fingerprint,
    issue,
    new_token,
    tls_key_digest,
    write_file,
)
from commons.notes import NoteError, Signer, digest, open_note, parse
from commons.records import Kind, Record, canonical_json
from governance.consortium import Consortium

VALID_S = 30 * 86_400
INVITE_BYTES_MAX = 4096
_RENEW_S = 86_400


@dataclass(frozen=True)
class Enrolled:
    certificate: bytes
    authority: bytes
    charter: bytes
    founding: tuple[bytes, ...]


@dataclass(frozen=True)
class Held:
    """What one subject has to speak to the coordinator with."""

    joined: bool
    invite_until_ms: int
    """0: there is no invite for it."""
    certificate_until_ms: int
    """Of the last certificate it got; 0: not known."""


class Enrolments:
    """Invites in ``invites/``, and in ``enrolled.json`` which token was used for which TLS key.

    A token is burnt for a key: asked again with the same key, the answer is the same, so a lost reply is no
    harm; another key is refused. For a site the SITE record is the truth, the token is burnt after it.
    """

    def __init__(
        self,
        home: Path,
        consortium: Consortium,
        authority: Authority,
        signer: Signer,
        founding: Sequence[bytes],
    ) -> None:
        self._folder = home / "invites"
        self._burnt_file = home / "enrolled.json"
        self._consortium, self._authority, self._signer = consortium, authority, signer
        self._founding = tuple(founding)
        self._burnt: dict[str, dict[str, str]] = {}
        self._invited: dict[str, int] = {}
        """Subject's URI -> until when its invite can be used, Unix ms."""
        with suppress(FileNotFoundError):
            self._burnt = json.loads(self._burnt_file.read_bytes())

    def write_invites(self, *, address: str, enrolment: str) -> list[Path]:
        """Write an invite for every member and site that is not enrolled; one that is still good stays."""
        charter = self._consortium.charter
        joined = {entry["subject"] for entry in self._burnt.values()}
        subjects = [Subject("member", m.name) for m in charter.members]
        with self._consortium.lock:
            here = set(self._consortium.members.enrolled)
        subjects += [Subject("site", s.partner, s.name) for s in charter.sites if s.name not in here]
        written = []
        for subject in subjects:
            if subject.uri(charter.consortium.name) in joined:
                continue
            file = self._folder / f"{subject.role}-{subject.site or subject.partner}.invite"
            invite = Invite(
                consortium=charter.consortium.name,
                address=address,
                enrolment=enrolment,
                ca_fingerprint=fingerprint(self._authority.certificate),
                subject=subject,
                token=new_token(),
                expires_s=int(time.time()) + VALID_S,
            )
            good = self._still_good(file, invite)
            if not good:
                write_file(file, self._signer.sign(invite.compose()), private=True)
            self._invited[subject.uri(charter.consortium.name)] = (good or invite).expires_s * 1000
            written.append(file)
        return written

    def enrol(self, invite_note: bytes, csr: bytes, delegation: bytes) -> Enrolled | Refusal:
        """A certificate for the invited subject. Asked again with the same key: a certificate again."""
        invite = self._open(invite_note)
        if isinstance(invite, Refusal):
            return invite
        try:
            key = tls_key_digest(csr)
            certificate = issue(self._authority, csr, invite.subject)
        except CertificateError as error:
            return Refusal(Code.REQUEST_INVALID, f"the certificate request cannot be taken: {error}")
        with self._consortium.lock:
            token = digest(invite.token.encode())
            burnt = self._burnt.get(token)
            if burnt and burnt["key"] != key:
                who = invite.subject
                message = f"this invite of {who} was used for another key; the operator hands out a new one"
                return Refusal(Code.INVITE_USED, message)
            if invite.subject.role == "site":
                refusal = self._delegate(invite.subject, delegation, key)
                if refusal is not None:
                    return refusal
            self._burn(token, invite, key, ends_ms(certificate))
        charter = charter_file.canonical(self._consortium.members.charters[1])
        return Enrolled(certificate, self._authority.certificate, charter, self._founding)

    def _open(self, data: bytes) -> Invite | Refusal:
        name = self._consortium.charter.consortium.name
        try:
            if len(data) > INVITE_BYTES_MAX:
                raise NoteError(f"it has {len(data)} bytes")
            invite = Invite.from_note(open_note(data, [self._signer.verifier]))
        except NoteError as error:
            return Refusal(Code.INVITE_INVALID, f"this is no invite of consortium {name}: {error}")
        if invite.consortium != name or invite.subject.role not in ("site", "member"):
            return Refusal(Code.INVITE_INVALID, f"this invite is for {invite.subject} of {invite.consortium}")
        if self._consortium.charter.member(invite.subject.partner) is None:
            return Refusal(Code.INVITE_INVALID, f"{invite.subject.partner} is no member of {name} any more")
        if time.time() > invite.expires_s:
            message = f"the invite of {invite.subject} has expired; the operator hands out a new one"
            return Refusal(Code.INVITE_EXPIRED, message)
        return invite

    def _delegate(self, subject: Subject, delegation: bytes, key: str) -> Refusal | None:
        """Record the site's keys as its partner signed them; the same ones again change nothing."""
        members = self._consortium.members
        held = members.delegation(subject.site or "")

        def decide(now_ms: int) -> list[Record] | Refusal:
            records = members.decide_enrol_site(delegation, now_ms)
            if isinstance(records, Refusal) or not records:
                return records
            note = dict(line.split(" ", 1) for line in parse(delegation).text.splitlines()[1:])
            if (note["partner"], note["site"]) != (subject.partner, subject.site):
                return Refusal(
                    Code.NOT_AUTHORISED, f"the delegation is not for {subject}, whom the invite names"
                )
            if note["tls-key"] != key:
                message = f"the delegation of {subject} names another TLS key than the request's"
                return Refusal(Code.NOT_AUTHORISED, message)
            if held is not None:
                return Refusal(Code.INVITE_USED, f"{subject} is enrolled with other keys already")
            assert records[0].kind is Kind.SITE
            return records

        done = self._consortium.commit(decide)
        if isinstance(done, Refusal):
            return done
        now = members.delegation(subject.site or "")
        if now is None or now.tls_key != key:
            return Refusal(Code.INVITE_USED, f"{subject} is enrolled with other keys already")
        return None

    def held(self, subject: Subject) -> Held:
        """Of a member or site of the charter in force."""
        uri = subject.uri(self._consortium.charter.consortium.name)
        ends = [int(entry.get("until-ms", 0)) for entry in self._burnt.values() if entry["subject"] == uri]
        return Held(bool(ends), 0 if ends else self._invited.get(uri, 0), max(ends, default=0))

    def _burn(self, token: str, invite: Invite, key: str, until_ms: int) -> None:
        """Remember whose key it is for, and until when the certificate holds."""
        entry = {"subject": invite.subject.uri(invite.consortium), "key": key, "until-ms": str(until_ms)}
        if self._burnt.get(token) == entry:
            return
        write_file(self._burnt_file, canonical_json({**self._burnt, token: entry}), private=True)
        self._burnt[token] = entry

    def _still_good(self, file: Path, wanted: Invite) -> Invite | None:
        """The invite in the file, if it can still be handed out."""
        try:
            held = self._open(file.read_bytes())
        except FileNotFoundError:
            return None
        if isinstance(held, Refusal) or held.expires_s < time.time() + _RENEW_S:
            return None
        same = (held.address, held.enrolment, held.ca_fingerprint, held.subject)
        return (
            held
            if same == (wanted.address, wanted.enrolment, wanted.ca_fingerprint, wanted.subject)
            else None
        )
