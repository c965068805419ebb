"""Features about what leaves the consortium, and about stopping: releases, their licence, pause and resumption."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from commons.charter import Released
from commons.features.feature import Feature, appended, replaced
from commons.section import WHOLE, Section


class Nothing(Section):
    """No parameters."""


class Licence(Section):
    licence: Annotated[str, Field(min_length=1, max_length=64)]


class SeedBeside(Section):
    on: bool


RELEASING = (
    Feature(
        "licence",
        "Set the licence of released models",
        Licence,
        ("/release/licence",),
        lambda _, wanted: [replaced("/release/licence", wanted.licence)],
        type="licence.change",
        switch=False,
    ),
    Feature(
        "seed-beside",
        "Release the model that a run began from beside the one it came to, for text that this reads worse",
        SeedBeside,
        ("/release/seed_beside",),
        lambda _, wanted: [replaced("/release/seed_beside", wanted.on)],
        type="licence.change",
        switch=False,
    ),
    Feature(
        "model-release",
        "Release a model: its manifest, the name it is released by, its licence and the gates it has passed",
        Released,
        ("/releases",),
        lambda _, model: [appended("/releases", model.model_dump(mode="json", context=WHOLE))],
        type="model.release",
        switch=False,
        needs="the digest of its gates",
        undone_by="a later release by the same alias",
    ),
    Feature(
        "pause",
        "Open no further round until the members vote to resume",
        Nothing,
        ("/rounds/paused",),
        lambda _, __: [replaced("/rounds/paused", True)],
        type="emergency.pause",
        switch=False,
        undone_by="resume",
    ),
    Feature(
        "resume",
        "Open rounds again after a pause",
        Nothing,
        ("/rounds/paused",),
        lambda _, __: [replaced("/rounds/paused", False)],
        type="emergency.pause",
        switch=False,
        undone_by="pause",
    ),
)
