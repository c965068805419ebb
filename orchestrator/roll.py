"""Who is there and what was released, as views: from charter, journal and the invites that were handed out."""

from __future__ import annotations

from commons.certificates import Subject
from commons.charter import Site
from commons.names import SiteId
from commons.notes import parse, read
from commons.privacy.terms import DP
from commons.records import Kind
from commons.roll_views import (
    AccessView,
    MadeReleaseView,
    MembersView,
    MemberView,
    ReleasesView,
    SiteEntryView,
    VotedReleaseView,
)
from orchestrator.desk import Desk
from orchestrator.enrolment import Enrolments
from orchestrator.release.layout import NOTE_KEYS, NOTE_KIND


def members_view(desk: Desk, enrolments: Enrolments) -> MembersView:
    """Call it while the journal's views stand still."""
    charter, proposals = desk.consortium.charter, desk.consortium.proposals
    members = []
    for member in charter.members:
        delegated = proposals.ballot_keys.get(member.name)
        members.append(
            MemberView(
                member=member.name,
                key=member.key,
                group=member.group,
                suspended=member.suspended,
                dormant=charter.voting.dormancy and member.name in proposals.dormancy.members,
                officer=member.name in charter.voting.officers,
                ballot_key=delegated.key if delegated else "",
                ballot_key_until_ms=delegated.expires_ms if delegated else 0,
            )
        )
    subjects = [Subject("member", m.name) for m in charter.members]
    subjects += [Subject("site", s.partner, s.name) for s in charter.sites]
    return MembersView(
        charter_version=charter.version,
        members=tuple(members),
        sites=tuple(_site(desk, site) for site in charter.sites),
        access=tuple(_access(desk, enrolments, subject) for subject in subjects),
    )


def _site(desk: Desk, site: Site) -> SiteEntryView:
    delegation = desk.consortium.members.delegation(site.name)
    privacy = desk.consortium.charter.privacy
    terms: DP | None = privacy.dp if privacy.mode == "dp" else None
    return SiteEntryView(
        **{name: getattr(site, name) for name in Site.model_fields if name != "name"},
        site=site.name,
        key=delegation.key if delegation else "",
        epsilon=desk.runs.noised.spent(SiteId(site.name), terms) if terms else None,
        epsilon_max=terms.epsilon_max if terms else None,
    )


def _access(desk: Desk, enrolments: Enrolments, subject: Subject) -> AccessView:
    held = enrolments.held(subject)
    enrolled = subject.site in desk.consortium.members.enrolled if subject.site else held.joined
    return AccessView(
        subject=str(subject),
        partner=subject.partner,
        site=subject.site or "",
        joined=enrolled,
        invite_until_ms=0 if enrolled else held.invite_until_ms,
        certificate_until_ms=held.certificate_until_ms,
    )


def releases_view(desk: Desk) -> ReleasesView:
    """Call it while the journal's views stand still."""
    consortium = desk.consortium
    indices = sorted(desk.runs.releases.values())
    made = []
    for index in indices:
        record = consortium.journal.record(index)
        assert record.kind is Kind.RELEASE
        said = read(parse(record.body), NOTE_KIND, list(NOTE_KEYS))
        run = desk.runs.by_id.get(said["run"])  # type: ignore[call-overload]
        made.append(
            MadeReleaseView(
                index=index,
                at_ms=record.at_ms,
                run=said["run"],
                round=int(said["round"]),
                state=said["state"],
                manifest=said["manifest"],
                licence=said["licence"],
                parent=run.history[0].base if run and run.history else "",
            )
        )
    voted: dict[tuple[str, str], VotedReleaseView] = {}
    for version, charter in sorted(consortium.members.charters.items()):
        for released in charter.releases:
            voted.setdefault(
                (released.alias, released.manifest),
                VotedReleaseView(**released.model_dump(), charter_version=version),
            )
    licence = consortium.charter.release.licence
    return ReleasesView(licence=licence, made=tuple(made), voted=tuple(voted.values()))
