"""What every page is, and what all pages share: templates, navigation, the viewer, parts that change while one looks.

A page is a template and a function that gives the template its values. A block of the template whose name begins with
`part_` is a part: it stands in an element with `data-part` of that name and is sent anew to open pages when it changes.
A form stands outside of parts, else it would be lost while somebody fills it in.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import BaseRoute

from commons.views import View
from commons.written import duration, instant, money, size
from governance.dashboard.feed import Feed
from governance.dashboard.figures import FILTERS
from governance.dashboard.office import Office

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
PART = "part_"

Context = dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """What the consortium is measured against: held-out losses, nats per byte."""

    alone: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """partner -> domain -> loss of a model that it trained by itself."""
    central: Mapping[str, float] = field(default_factory=dict)
    """domain -> loss of a model trained on all texts in one place."""


@dataclass(frozen=True)
class Settings:
    mlflow_url: str = ""
    """Of MLflow as browsers reach it; empty: pages link to none."""
    ray_url: str = ""
    """Of the Ray dashboard of one's own site."""
    compared: Compared = Compared()
    streams_max: int = 256
    """Pages that may be open and live at the same time."""


@dataclass(frozen=True)
class Page:
    path: str
    title: str
    template: str
    context: Callable[[Hall, Request], Context]
    """What the template is given. Runs in a thread; may read from the office; raises HansaError or HTTPException."""
    views: tuple[type[View], ...] = ()
    """When one of them changes, the parts are made again."""
    listed: bool = True
    """Whether it stands in the navigation."""
    more: Callable[[Hall], Sequence[BaseRoute]] | None = None
    """Routes that belong to it: downloads, JSON, forms."""


class Hall:
    """What all pages share."""

    def __init__(self, office: Office, feed: Feed, settings: Settings, pages: Sequence[Page]) -> None:
        self.office, self.feed, self.settings, self.pages = office, feed, settings, tuple(pages)
        self._templates = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "money": money,
            "size": size,
            "duration": duration,
            "instant": instant,
        } | FILTERS
        self._templates.globals["static"] = self.static
        self._templates.globals["ui"] = self._templates.get_template("macros.html.j2").module
        self._templates.globals["votes"] = self._templates.get_template("votes.html.j2").module

    @cached_property
    def version(self) -> str:
        """Of all static files together, so that modules import one another by relative names."""
        found = hashlib.sha256()
        for path in sorted(p for p in STATIC.rglob("*") if p.is_file()):
            found.update(path.relative_to(STATIC).as_posix().encode() + b"\0" + path.read_bytes())
        return found.hexdigest()[:12]

    def static(self, name: str) -> str:
        """URL of a static file; it may be kept for ever."""
        return f"/static/{self.version}/{name}"

    def render(self, request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
        """A whole page."""
        found = self._templates.get_template(template)
        html = found.render({**self._shared(request), "csrf": getattr(request.state, "csrf", ""), **context})
        return HTMLResponse(html, status)

    def show(self, page: Page, request: Request) -> HTMLResponse:
        return self.render(
            request, page.template, page=page, live=bool(page.views), **page.context(self, request)
        )

    def parts(self, page: Page, request: Request) -> dict[str, str]:
        """Name -> HTML of every part of a page as it is now. A part knows no CSRF token: it has no form."""
        template = self._templates.get_template(page.template)
        values = {**self._shared(request), "page": page, **page.context(self, request)}
        context = template.new_context(values)
        base = self._templates.get_template("base.html.j2")
        blocks = {
            name: block for t in (base, template) for name, block in t.blocks.items() if name.startswith(PART)
        }
        return {name: "".join(block(context)) for name, block in blocks.items()}

    def _shared(self, request: Request) -> Context:
        return {
            "page": None,
            "live": False,
            "now_ms": time.time_ns() // 1_000_000,
            "viewer": getattr(request.state, "viewer", None),
            "pages": [page for page in self.pages if page.listed],
            "consortium": self.office.consortium,
            "trouble": self.feed.trouble,
            "leave": getattr(request.state, "leave", ""),  # where one signs out, if the door lets one
            "settings": self.settings,
        }
