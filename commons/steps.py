"""Numbered steps of a check: each is done, with a line for people, or fails with a refusal that names it.

Knows nothing of what is checked. A failure leaves the steps as `Failed`; whoever began them turns it into a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from typing_extensions import Never

from commons.errors import Code, Refusal
from commons.merkle import ProofError
from commons.notes import NoteError

P = ParamSpec("P")
T = TypeVar("T")


class Failed(Exception):
    """The step that did not hold, as the refusal to answer with."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Steps:
    """Base of a check that goes from step to step."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        """What was done, one line per step."""
        self._step, self._code = "", Code.PROOF_INVALID

    def _begin(self, step: str, code: Code) -> None:
        """`step`: its number and name; `code` is what a failure is refused with."""
        self._step, self._code = step, code

    def _done(self, what: str) -> None:
        self.steps.append(f"{self._step}: {what}")

    def _attempt(self, read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `read` answers; what it cannot read or prove fails the step."""
        try:
            return read(*args, **kwargs)
        except (NoteError, ProofError, ValueError, RecursionError) as error:
            self._fail(str(error))

    def _fail(self, why: str, **details: Any) -> Never:
        number = int(self._step.split()[0])
        raise Failed(
            Refusal(
                self._code,
                f"step {self._step}: {why}; this site does not train on it, ask the coordinator's operator",
                {"step": number, **details},
            )
        )
