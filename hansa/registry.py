"""The registry of features for a person: what each is voted as, what it may touch, and what it takes."""

from __future__ import annotations

import json
from typing import Any

from commons.errors import ConfigError
from commons.features import FEATURES
from hansa.output import table


def feature_facts(key: str = "") -> list[dict[str, Any]]:
    """One feature, or all. Raises ConfigError for one there is not."""
    if key and key not in FEATURES:
        raise ConfigError([f"there is no feature {key!r}; there are {', '.join(FEATURES)}"])
    return [
        {
            "feature": feature.key,
            "title": feature.title,
            "type": feature.type,
            "paths": list(feature.paths),
            "parameters": feature.parameters.model_json_schema(),
            "needs": feature.needs,
            "undone_by": feature.undone_by,
        }
        for feature in FEATURES.values()
        if key in ("", feature.key)
    ]


def feature_text(facts: list[dict[str, Any]], *, whole: bool) -> str:
    rows = [
        (f["feature"], f["type"], ", ".join(f["parameters"].get("properties", {})) or "-", f["title"])
        for f in facts
    ]
    text = table(("feature", "voted as", "parameters", "what it does"), rows)
    if not whole:
        return text
    (found,) = facts
    return "\n".join(
        [
            f"{found['feature']} ({found['type']}): {found['title']}",
            f"  may change {', '.join(found['paths']) or 'nothing'}",
            *([f"  needs {found['needs']}"] if found["needs"] else []),
            f"  is undone by {found['undone_by']}",
            f"  what it costs: hansa budget quote --feature {found['feature']} -s NAME=VALUE",
            "  parameters, by JSON schema:",
            json.dumps(found["parameters"], indent=2, ensure_ascii=False),
        ]
    )
