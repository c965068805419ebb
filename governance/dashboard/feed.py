"""The newest answer of every view that pages show, from one watcher per view however many pages are open.

A view is watched from the first time it is asked for. While the coordinator is away the last answers stay, and
`trouble` says so. Knows nothing of pages or browsers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import cast

from commons.errors import HansaError, Refused, Unreachable
from commons.views import JournalView, View
from governance.dashboard.office import Office, V

FIRST_ANSWER_S = 5.0
"""How long a page waits for a view that was never answered."""
RETRY_S = 1.0
REFUSED_RETRY_S = 30.0
"""A refused view (no run was started yet) is asked for again with the journal's next record, at the latest after this."""

Listener = Callable[[], None]
"""Called from a watcher's thread; must not block."""


class Feed:
    """Safe to share between threads. `close` it before the office."""

    def __init__(self, office: Office) -> None:
        self._office = office
        self._lock = threading.Lock()
        self._lines: dict[type[View], _Line] = {}
        self._closing = threading.Event()

    def latest(self, kind: type[V]) -> V | None:
        """The newest answer; None where the coordinator refuses one, as there is nothing yet.

        Raises Unreachable when there was never an answer.
        """
        line = self._line(kind)
        if not line.known.wait(FIRST_ANSWER_S) or (line.answer is None and not line.refused):
            raise Unreachable(line.trouble or "the coordinator has not answered yet; try again in a moment")
        return cast("V | None", line.answer)

    @property
    def trouble(self) -> str:
        """Why the answers may be old; empty when they are not."""
        with self._lock:
            lines = list(self._lines.values())
        return next((line.trouble for line in lines if line.trouble), "")

    def listen(self, kind: type[View], listener: Listener) -> Callable[[], None]:
        """Call `listener` whenever the view changes or the coordinator goes or comes; the answer ends that."""
        line = self._line(kind)
        with line.lock:
            line.listeners.append(listener)

        def end() -> None:
            with line.lock:
                line.listeners.remove(listener)

        return end

    def close(self) -> None:
        self._closing.set()

    def _line(self, kind: type[View]) -> _Line:
        with self._lock:
            line = self._lines.get(kind)
            if line is None:
                line = self._lines[kind] = _Line(kind)
                name = f"feed {kind.__name__}"
                threading.Thread(target=self._follow, args=(line,), name=name, daemon=True).start()
            return line

    def _follow(self, line: _Line) -> None:
        while not self._closing.is_set():
            try:
                for answer in self._office.watch(line.kind):
                    line.take(answer)
                line.lose("the coordinator is stopping")
            except Refused:
                grown = threading.Event()
                ends = self.listen(JournalView, grown.set) if line.kind is not JournalView else None
                line.refuse()
                grown.wait(REFUSED_RETRY_S)
                if ends:
                    ends()
                continue
            except HansaError as error:
                line.lose(str(error))
            self._closing.wait(RETRY_S)


class _Line:
    """What is known of one view."""

    def __init__(self, kind: type[View]) -> None:
        self.kind = kind
        self.lock = threading.Lock()
        self.known = threading.Event()
        self.answer: View | None = None
        self.refused = False
        self.trouble = ""
        self.listeners: list[Listener] = []

    def take(self, answer: View) -> None:
        self._set(answer, refused=False, trouble="")

    def refuse(self) -> None:
        self._set(None, refused=True, trouble="")

    def lose(self, trouble: str) -> None:
        self._set(self.answer, refused=self.refused, trouble=trouble)

    def _set(self, answer: View | None, *, refused: bool, trouble: str) -> None:
        with self.lock:
            changed = (answer, refused, trouble) != (self.answer, self.refused, self.trouble)
            self.answer, self.refused, self.trouble = answer, refused, trouble
            listeners = list(self.listeners) if changed else []
        self.known.set()
        for listener in listeners:
            listener()
