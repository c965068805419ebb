"""The mirror: a thread that follows the journal into MLflow, at its own pace.

Training never waits for it. What MLflow lost is written again; what a person changed there by hand is found by
`hansa mirror verify`, and an alias that a person moved is complained about while the mirror runs.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from commons.notes import Signer
from governance.consortium import Consortium
from governance.tracking.cursor import Cursor, CursorFile
from governance.tracking.feed import Feed, Moved
from governance.tracking.papers import Papers
from governance.tracking.trouble import explain, shown

if TYPE_CHECKING:
    from governance.tracking.mlflow_store import MlflowStore

_RETRY_S = (0.5, 1, 2, 5, 10, 30)
_WATCH_S = 60.0
"""How often aliases are looked at while nothing is to be written."""

log = logging.getLogger("hansa.mirror")


class Mirror:
    """Follows `consortium` into the MLflow store at `tracking_uri`. One per journal; `signer` is the log key."""

    def __init__(
        self,
        consortium: Consortium,
        signer: Signer,
        tracking_uri: str,
        cursor_path: Path,
        dashboard: str = "",
    ) -> None:
        self.tracking_uri = tracking_uri
        self.trouble = ""
        """Why MLflow could not be written to the last time; empty when it could."""
        self.drift = ""
        """Which aliases name other versions than the votes say; empty when none does."""
        self._consortium, self._dashboard = consortium, dashboard
        self._papers = Papers(consortium, signer)
        self._file = CursorFile(cursor_path)
        self._feed = Feed(consortium, self._file, Cursor(tracking_uri, dashboard=dashboard))
        self._moved = threading.Condition()
        self._next = 0
        self._watched_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def behind(self) -> int:
        """Records not yet in MLflow."""
        return self._consortium.size - self._next

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything recorded so far is in MLflow; False when that takes longer."""
        size = self._consortium.size
        with self._moved:
            return self._moved.wait_for(lambda: self._next >= size, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop after the batch at hand, at most `timeout_s`; what is left is written at the next start."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _follow(self) -> None:
        failures = 0
        while not self._stop.is_set():
            before = self._next
            try:
                self._write_until_stopped()
            except Moved:
                continue
            except Exception as wrong:  # whatever MLflow, its database or its network raise
                failures = failures + 1 if self._next == before else 1
                self._complain(explain(wrong, self.tracking_uri))
                log.debug("what MLflow raised", exc_info=wrong)
                self._stop.wait(_RETRY_S[min(failures, len(_RETRY_S)) - 1])

    def _write_until_stopped(self) -> None:
        from governance.tracking.mlflow_store import MlflowStore

        while not self._consortium.members.founded:
            if self._stop.wait(0.1):
                return
        name = self._consortium.charter.consortium.name
        with self._file.alone(self._stop) as alone:
            if not alone:
                return
            store = MlflowStore(self.tracking_uri, name, self._papers, self._dashboard)
            self._feed.connect(store)
        self._recovered()
        self._advance()
        while not self._stop.is_set():
            with self._file.alone(self._stop) as alone:
                wrote = alone and self._feed.write()
            if wrote:
                self._advance()
            else:
                self._watch(store)
                self._consortium.wait_beyond(self._next, 0.5)

    def _advance(self) -> None:
        with self._moved:
            self._next = self._feed.done
            self._moved.notify_all()

    def _complain(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("%s. Training goes on; the mirror tries again", trouble)
        self.trouble = trouble

    def _recovered(self) -> None:
        if self.trouble:
            log.info("MLflow at %s takes what the mirror writes again", shown(self.tracking_uri))
        self.trouble = ""

    def _watch(self, store: MlflowStore) -> None:
        """Complain, once, about an alias that somebody moved in MLflow by hand."""
        if time.monotonic() - self._watched_s < _WATCH_S:
            return
        self._watched_s = time.monotonic()
        releases = self._feed.releases
        said = "; ".join(store.registry.drifted(releases.model, releases.aliases))
        if said and said != self.drift:
            log.warning("%s; `hansa mirror rebuild` puts it right", said)
        self.drift = said
