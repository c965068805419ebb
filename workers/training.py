"""What a site wants of whatever trains for it: `Training`, and the words the two speak.

Knows nothing of how it is done: `workers.actor` does it in a Ray actor. Imports neither Ray nor torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from commons.charter import Charter
from commons.errors import HansaError
from workers.seal import Trained
from workers.site_file import SiteFile

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Progress:
    """`loss` is the mean over the round's steps so far, None before the first."""

    step: int = 0
    steps: int = 0
    tokens_per_s: float = 0.0
    loss: float | None = None
    device_ms: int = 0
    """What would be charged if the round ended with this step."""
    why: str = ""
    """Why there is none yet."""


class Wish(Enum):
    """What the site wants of the call under way."""

    GO_ON = "go on"
    FINISH = "finish"
    """End the round after the step it is in, and hand in what is there. An evaluation goes on."""
    ABANDON = "abandon"


Watch = Callable[[Progress], Wish]
"""Told the progress about twice a second."""


class TrainingFailed(HansaError):
    """The site's training cannot go on; the message says why and who acts."""


class Abandoned(Exception):
    """The caller no longer wants the result. The next order starts from what is durable."""


class Interrupted(Exception):
    """The site was told to stop while its training was still starting. Nothing of it is left."""


class Training(Protocol):
    """One caller at a time."""

    def train(
        self,
        run: str,
        number: int,
        charter: Charter,
        base: Mapping[str, Array],
        *,
        not_before_ms: int,
        watch: Watch,
    ) -> Trained:
        """One round, or what of it is trained when `watch` wants it finished.

        `not_before_ms`: end of the site's last usage record. Raises Abandoned when the watch wants that,
        TrainingFailed with the trainer's reason. A repeat gives the same.
        """
        ...

    def ahead(self, run: str, number: int, charter: Charter, *, not_before_ms: int) -> None:
        """Begin round `number` while its order is not here: the steps that come before its base is taken in. Returns at once.

        `train` of that round under the same charter goes on from there, and gives what it would give without this.
        """
        ...

    def evaluate(
        self, run: str, charter: Charter, state: Mapping[str, Array], *, watch: Watch
    ) -> tuple[float, int]:
        """(loss in nats per byte, bytes of held-out text); raises as `train` does."""
        ...

    def probe(
        self, run: str, charter: Charter, state: Mapping[str, Array], *, watch: Watch
    ) -> tuple[float, ...]:
        """Losses of `state` on the parts of the charter's probe, nats per byte, routed as in training; no number where the
        state gives none. Raises as `train` does, also where the site lacks the text."""
        ...


Begin = Callable[[SiteFile, threading.Event], AbstractContextManager[Training]]
"""Starts what trains for a site, for the length of a `with` block; raises Interrupted once the event is set."""
