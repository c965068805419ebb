"""The registered model in MLflow: a version per release, and aliases that name the versions the members voted for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from governance.tracking.items import TEXT_MAX, Alias, Version

IDEM = "hansa.idem"
_CONSORTIUM = "hansa.consortium"

log = logging.getLogger("hansa.mirror")


class Registry:
    """Writing a version or an alias again changes nothing."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def add(self, item: Version, run_id: str) -> None:
        """The files of the version lie in its folder of the run `run_id`."""
        if self._model(item.model) is None:
            self._client.create_registered_model(
                item.model,
                tags={_CONSORTIUM: item.tags[_CONSORTIUM]},
                description="Releases of the consortium. An alias moves by an executed vote and by nothing else.",
            )
        found = self._numbers(item)
        if not found:
            self._client.create_model_version(
                item.model,
                f"runs:/{run_id}/{item.folder}",
                run_id,
                tags=item.tags | {IDEM: item.idem},
                description=item.about,
                await_creation_for=None,
            )
            found = self._numbers(item)
        for twin in found[1:]:
            self._client.delete_model_version(item.model, twin)

    def move(self, item: Alias) -> None:
        """Nothing when the version is gone: `hansa mirror verify` says so."""
        for version in self.versions(item.model):
            if version.tags.get(IDEM) == item.version:
                for name, value in item.tags.items() - version.tags.items():
                    self._client.set_model_version_tag(item.model, version.version, name, value[:TEXT_MAX])
                self._client.set_registered_model_alias(item.model, item.name, version.version)
                return
        log.warning("%s is gone from MLflow: alias %s stays where it is", item.version, item.name)

    def versions(self, model: str) -> list[ModelVersion]:
        """Oldest first."""
        found, token = list[ModelVersion](), None
        while token != "":
            page = self._client.search_model_versions(f"name = '{model}'", page_token=token)
            found += page
            token = page.token or ""
        return sorted(found, key=lambda version: int(version.version))

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> `hansa.idem` of the version it names, or the version's number where it has none."""
        found = self._model(model)
        if found is None:
            return {}
        known = {
            str(v.version): str(v.tags.get(IDEM) or f"version {v.version}") for v in self.versions(model)
        }
        return {name: known.get(str(v), f"version {v}") for name, v in found.aliases.items()}

    def drifted(self, model: str, voted: Mapping[str, str]) -> list[str]:
        """Each alias that names another version than the votes say, in a sentence."""
        shown, found = self.aliases(model) if model else {}, list[str]()
        for name in sorted(shown.keys() | voted.keys()):
            if name not in voted:
                found.append(f"alias {name} of {model} names {shown[name]}, and no vote made it")
            elif shown.get(name) != voted[name]:
                where = f"names {shown[name]}" if name in shown else "is gone"
                found.append(f"alias {name} of {model} {where}; by the votes it is {voted[name]}")
        return found

    def drop(self, model: str) -> None:
        """Delete the model with its versions and aliases."""
        if model and self._model(model) is not None:
            self._client.delete_registered_model(model)

    def _numbers(self, item: Version) -> list[Any]:
        return [v.version for v in self.versions(item.model) if v.tags.get(IDEM) == item.idem]

    def _model(self, name: str) -> RegisteredModel | None:
        try:
            return self._client.get_registered_model(name)
        except MlflowException as missing:
            if missing.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
