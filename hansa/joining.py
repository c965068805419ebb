"""Taking a seat: an invite and one's keys against a certificate, checked before anything is sent or written.

The invite came out of band and names the fingerprint of the consortium's authority; the server must show that very
authority first. What comes back is believed only if it holds together: the charter's log key signed the invite,
every member of the charter signed the charter, and one's own key is in it if one is a founder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc
import tomlkit

from commons import charter_file
from commons.charter import Charter
from commons.errors import ConfigError, HansaError
from commons.identity import (
    Invite,
    Seat,
    csr,
    load_signer,
    read_file,
    save_signer,
    tls_key_digest,
    tls_keypair,
    write_file,
)
from commons.learning import SEQUENCE_MIN
from commons.notes import NoteError, Signer, Verifier, compose, open_note, parse
from commons.wire import channel
from commons.wire.v1 import consortium_pb2 as wire
from commons.wire.v1.consortium_pb2_grpc import EnrolmentStub
from hansa.charters import founders
from workers.data import Corpus, CorpusError

MEMBER_KEY, SITE_KEY, TLS_KEY = "member.key", "site.key", "tls.key"
ENROL_S = 20.0


def join_as_member(invite: Path, key: Path, seat: Path) -> Seat:
    """Write the seat, with the member's key in it for signing. Raises HansaError; then there is no seat.

    The TLS key is made first and kept, so that an enrolment whose answer was lost can be asked again.
    """
    _refuse_taken(seat)
    invited, note = _read_invite(invite, "member")
    signer = load_signer(key)
    if signer.name != invited.subject.partner:
        raise HansaError(
            f"{invite} is for member {invited.subject.partner}, {key} is the key of {signer.name}"
        )
    made = _enrol(invited, note, _kept_tls_key(seat / TLS_KEY), b"", seat, own=signer)
    if not (seat / MEMBER_KEY).exists():
        save_signer(seat / MEMBER_KEY, signer)
    return made


def join_as_site(
    invite: Path, key: Path, folder: Path, *, text: Path, public: Path | None, cpus: float = 1
) -> Path:
    """Write FOLDER/seat with the site's own keys, and FOLDER/site.toml; the path of the latter.

    The site's keys are made first and kept, for the same reason. Raises ConfigError for a text no site can train on,
    before anything is written or sent.
    """
    seat = folder / "seat"
    _refuse_taken(seat)
    _check_texts(text, *([public] if public else []))
    invited, note = _read_invite(invite, "site")
    partner, site = invited.subject.partner, invited.subject.site or ""
    member = load_signer(key)
    if member.name != partner:
        raise HansaError(f"{invite} is for a site of {partner}, {key} is the key of {member.name}")
    signer = _kept_signer(seat / SITE_KEY, f"{partner}/{site}")
    tls_key = _kept_tls_key(seat / TLS_KEY)
    fields = [
        ("consortium", invited.consortium), ("partner", partner), ("site", site), ("key", signer.vkey),
        ("tls-key", tls_key_digest(tls_key)),
    ]  # fmt: skip
    delegation = member.sign(compose("hansa-site/v1", fields))
    _enrol(invited, note, tls_key, delegation, seat, own=member)
    file = folder / "site.toml"
    if not file.exists():
        write_file(file, site_file(partner=partner, site=site, text=text, public=public, cpus=cpus).encode())
    return file


def _check_texts(*texts: Path) -> None:
    """By the shortest sequence a charter may have; the charter's own is only known once the site has joined."""
    problems = []
    for text in texts:
        try:
            Corpus.load(text, sequence_length=SEQUENCE_MIN)
        except CorpusError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)


def site_file(
    *, partner: str, site: str, text: Path, public: Path | None, ray: str = "local", cpus: float = 1
) -> str:
    """The text of a SITE.toml with every choice explained."""
    document = tomlkit.document()
    about = tomlkit.table()
    about["name"], about["partner"] = site, partner
    about["text"] = str(text.resolve())
    about["text"].comment("UTF-8 file or folder of .txt files; stays here")
    if public is not None:
        about["public"] = str(public.resolve())
    about["seat"], about["home"] = "seat", "state"
    document["site"] = about
    cluster = tomlkit.table()
    cluster["address"], cluster["cpus"], cluster["gpus"] = ray, cpus, 0
    cluster["address"].comment('"local": a small Ray of its own; or the address of yours')
    document["ray"] = cluster
    policy = tomlkit.table()
    policy["features"] = "any"
    policy["features"].comment("or a list: what the consortium may vote on without this site leaving")
    document["policy"] = policy
    return tomlkit.dumps(document)


def _enrol(
    invited: Invite, note: bytes, tls_key: bytes, delegation: bytes, seat: Path, *, own: Signer
) -> Seat:
    request = wire.EnrolRequest(invite=note, tls_csr=csr(tls_key), delegation=delegation)
    with channel.connect_for_enrolment(invited.enrolment, invited.ca_fingerprint) as opened:
        try:
            reply = EnrolmentStub(opened).Enrol(request, timeout=ENROL_S)
        except grpc.RpcError as error:
            raise channel.translate(error) from error
    charter = _believable(invited, note, reply.charter, list(reply.founding), own)
    return Seat.write(
        seat, consortium=invited.consortium, address=invited.address, subject=invited.subject,
        log_key=charter.consortium.log_key, tls_key=tls_key, certificate=reply.certificate,
        authority=reply.authority, charter=reply.charter, founding=tuple(reply.founding),
    )  # fmt: skip


def _believable(invited: Invite, note: bytes, text: bytes, founding: Sequence[bytes], own: Signer) -> Charter:
    """The founding charter, once invite, founders' notes and one's own key agree with it.

    Of a member that came by a vote the founders knew nothing: a site proves from the journal that its partner is in the
    charter in force before it trains (`commons.chain`).
    """
    try:
        charter = charter_file.from_canonical(text)
        open_note(note, [Verifier.from_vkey(charter.consortium.log_key)])
        signed = founders(charter, founding)
    except ValueError as wrong:
        raise HansaError(
            f"{invited.enrolment} answered with a charter that does not hold: {wrong}"
        ) from wrong
    if unsigned := [m.name for m in charter.members if m.name not in signed]:
        raise HansaError(
            f"{invited.enrolment} answered with a charter that {', '.join(unsigned)} never signed"
        )
    member = charter.member(own.name)
    if member is not None and member.key != own.vkey:
        raise HansaError(
            f"the charter names another key for {own.name} than the one given; sign with the key it names"
        )
    return charter


def _read_invite(path: Path, role: str) -> tuple[Invite, bytes]:
    data = read_file(path, "ask the coordinator's operator for it")
    try:
        invite = Invite.from_note(parse(data))
    except NoteError as wrong:
        raise HansaError(
            f"{path} is no invite ({wrong}); ask the coordinator's operator for it again"
        ) from None
    if invite.subject.role != role:
        hint = "hansa site join" if invite.subject.role == "site" else "hansa member join"
        raise HansaError(f"{path} is an invite for {invite.subject}; use it with `{hint}`")
    return invite, data


def _refuse_taken(seat: Path) -> None:
    if (seat / "seat.toml").exists():
        raise HansaError(f"{seat} is a seat already; choose another folder, or move it away to join anew")


def _kept_signer(path: Path, name: str) -> Signer:
    if not path.exists():
        save_signer(path, Signer.generate(name))
    return load_signer(path)


def _kept_tls_key(path: Path) -> bytes:
    if not path.exists():
        write_file(path, tls_keypair(), private=True)
    return read_file(path, "join again", private=True)
