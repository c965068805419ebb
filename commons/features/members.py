"""Features that change who is a member. The one concerned has no vote on it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from commons.charter import Charter, Member
from commons.charter_file import problems
from commons.errors import Code, Refusal
from commons.features.feature import Feature, Patch, appended, removed, replaced
from commons.section import WHOLE, Name, Section


class Named(Section):
    name: Name


class Because(Named):
    reason: Annotated[str, Field(min_length=1, max_length=500)]


def _named(wish: Named) -> tuple[str, ...]:
    return (wish.name,)


def _admit(charter: Charter, member: Member) -> Patch | Refusal:
    after = charter.model_copy(update={"members": (*charter.members, member)})
    known = charter.member(member.name)
    wrong = [f"{member.name!r} is a member already"] if known else problems(after)
    if wrong:
        return _refusal("member-admit", "; ".join(wrong))
    return [appended("/members", member.model_dump(mode="json", context=WHOLE))]


def _suspended(charter: Charter, wish: Named, *, feature: str, suspended: bool) -> Patch | Refusal:
    at = _place(charter, wish.name, feature)
    return at if isinstance(at, Refusal) else [replaced(f"/members/{at}/suspended", suspended)]


def _expel(charter: Charter, wish: Because) -> Patch | Refusal:
    """A member leaves with the grants that were voted for it; first its sites have to go, and it pays for no others."""
    at = _place(charter, wish.name, "member-expel")
    if isinstance(at, Refusal):
        return at
    bound = [site.name for site in charter.sites if wish.name in (site.partner, site.payer)]
    if bound:
        what = f"{wish.name} has or pays for {', '.join(bound)}: the members first vote on other owners and payers"
        return _refusal("member-expel", what)
    grants = [n for n, grant in enumerate(charter.grants) if grant.member == wish.name]
    return [*(removed(f"/grants/{n}") for n in reversed(grants)), removed(f"/members/{at}")]


def _place(charter: Charter, name: str, feature: str) -> int | Refusal:
    for at, member in enumerate(charter.members):
        if member.name == name:
            return at
    there = ", ".join(m.name for m in charter.members)
    return _refusal(feature, f"there is no member {name!r}; there are {there}")


def _refusal(feature: str, what: str) -> Refusal:
    return Refusal(Code.FEATURE_PARAMETERS_INVALID, f"parameters of {feature}: {what}")


def _member(
    key: str, title: str, parameters: type[Section], paths: tuple[str, ...], patch: Any, undone_by: str
) -> Feature:
    concerns = _named if issubclass(parameters, Named) else lambda _: ()
    return Feature(
        key,
        title,
        parameters,
        paths,
        patch,
        type="member",
        concerns=concerns,
        switch=False,
        undone_by=undone_by,
    )


MEMBERS = (
    _member(
        "member-admit",
        "Admit a member: name, key, budget, and the group of affiliates it belongs to",
        Member,
        ("/members",),
        _admit,
        "member-expel",
    ),
    _member(
        "member-suspend",
        "Suspend a member: no vote and no orders to its sites until it is readmitted",
        Because,
        ("/members/*/suspended",),
        lambda charter, wish: _suspended(charter, wish, feature="member-suspend", suspended=True),
        "member-readmit",
    ),
    _member(
        "member-readmit",
        "Give a suspended member its vote and its orders back",
        Named,
        ("/members/*/suspended",),
        lambda charter, wish: _suspended(charter, wish, feature="member-readmit", suspended=False),
        "member-suspend",
    ),
    _member(
        "member-expel",
        "Expel a member, who has no site and pays for none",
        Because,
        ("/members", "/grants"),
        _expel,
        "member-admit; grants are voted anew",
    ),
)
