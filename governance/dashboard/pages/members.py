"""Members: who belongs, which keys and certificates they hold and until when, what their sites have spent of privacy."""

from __future__ import annotations

from starlette.requests import Request

from commons.roll_views import AccessView, MembersView
from commons.run_views import NowView
from commons.views import CharterView
from governance.dashboard.alerts import EXPIRING_MS
from governance.dashboard.page import Context, Hall, Page
from governance.dashboard.pages.scene import is_online, now_ms


def context(hall: Hall, request: Request) -> Context:
    view, run = hall.feed.latest(MembersView), hall.feed.latest(NowView)
    now = now_ms()
    held = {(a.partner, a.site): a for a in view.access} if view else {}
    online = {s.site: is_online(s) for s in run.sites} if run else {}
    return {
        "view": view,
        "members": [
            {
                "member": m,
                "held": held.get((m.member, "")),
                "certificate": certificate(held.get((m.member, "")), now),
                "sites": [s for s in (view.sites if view else ()) if s.partner == m.member],
            }
            for m in (view.members if view else ())
        ],
        "sites": [
            {
                "site": s,
                "held": held.get((s.partner, s.site)),
                "certificate": certificate(held.get((s.partner, s.site)), now),
                "online": online.get(s.site),
            }
            for s in (view.sites if view else ())
        ],
        "noised": any(s.epsilon is not None for s in (view.sites if view else ())),
        "seat": str(hall.office.subject),
    }


def certificate(held: AccessView | None, now: int) -> tuple[str, str]:
    """(kind of badge, words) for what somebody holds."""
    if held is None:
        return "", "not known"
    if not held.joined:
        if held.invite_until_ms > now:
            return "warn", "invited"
        return "bad", "needs a new invite"
    if not held.certificate_until_ms:
        return "", "joined"
    if held.certificate_until_ms <= now:
        return "bad", "expired"
    return ("warn", "expires soon") if held.certificate_until_ms < now + EXPIRING_MS else ("good", "valid")


PAGE = Page("/members", "Members", "members.html.j2", context, (MembersView, NowView, CharterView))
