"""The questions of docs/mlflow.md, as a reader copies them, get the answers they promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from commons.log import open_proof_file
from commons.notes import Verifier
from commons.records import Kind, Record
from tests.support.chamber import LOG
from tests.support.mirrored import uri

mlflow = pytest.importorskip("mlflow")
PAGE = Path(__file__).parents[2] / "docs" / "mlflow.md"


@pytest.fixture(scope="module")
def asked(published: Path) -> dict[str, Any]:
    """Every name that the page's code gives a value, asked of the consortium `demo`."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri(published))
    names: dict[str, Any] = {}
    try:
        for block in blocks:
            exec(compile(block.replace("quay", "demo"), str(PAGE), "exec"), names)  # noqa: S102 - what a reader does
    finally:
        mlflow.set_tracking_uri(before)
    return names


def test_the_loss_of_every_partner_over_the_rounds(asked: dict[str, Any]) -> None:
    assert asked["losses"] == {"acme": [(1, 2.0), (2, 1.0)], "beta": [(1, 2.0)], "coop": []}


def test_the_vote_that_changed_the_steps_and_what_the_loss_did(asked: dict[str, Any]) -> None:
    assert asked["effect"] == {"P-0001": (2.0, 1.0)}


def test_what_was_spent_by_partner_and_period(asked: dict[str, Any]) -> None:
    spent = asked["spent"]["2023-11"]
    assert (spent["acme"], spent["beta"], spent["coop"]) == (1_400, 0, 700)
    assert asked["lasting"].max() == 1427  # (1,000,000 - 1,400) // 700 rounds more


def test_the_released_model_its_vote_and_the_proof_of_it(asked: dict[str, Any]) -> None:
    assert asked["version"].tags["hansa.round"] == "2"
    assert asked["vote"]["tags.proposal.feature"] == "model-release"
    assert asked["ballots"] == {"acme": "for", "beta": "for", "coop": "for"}
    _, leaf = open_proof_file(asked["proof"], Verifier.from_vkey(LOG.vkey))
    assert Record.parse(leaf).kind is Kind.EXECUTION


def test_budgets_turnout_and_charges(asked: dict[str, Any]) -> None:
    assert list(asked["short"]["tags.hansa.partner"]) == ["acme"]
    assert set(asked["turnout"]["metrics.votes/turnout"]) == {3.0}
    assert asked["charges"].to_dict() == {"acme": 700.0, "beta": 0.0, "coop": 0.0}
