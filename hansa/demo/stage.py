"""The demo's folder: where everything is, which demo it holds, and whether it may be used.

`demo.json` names the folder as a demo's and keeps its options and ports, so that `--resume` goes on with the same
consortium. Only a folder that has it is ever deleted (`--fresh`).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import Self

from commons.errors import HansaError, StoreError
from commons.identity import write_file
from hansa.demo.cast import DEMO, QUICK, Scale, Script
from hansa.demo.processes import free_ports, port_is_free

MARK = "demo.json"
FORMAT = 2


@dataclass(frozen=True)
class Options:
    """What the user asked for; None: not said."""

    folder: Path
    rounds: int | None = None
    seed: int | None = None
    joint: bool = False
    full: bool = False
    central: bool = False
    quick: bool = False
    fresh: bool = False
    resume: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class Stage:
    """One demo's folder and facts. Paths are absolute."""

    folder: Path
    rounds: int
    seed: int
    joint: bool
    full: bool
    central: bool
    quick: bool
    port: int
    enrolment_port: int
    given: str
    """The folder as the user wrote it, for messages."""

    @classmethod
    def open(cls, options: Options) -> Self:
        """A new demo, or the one in the folder. Raises StoreError when the folder holds something else."""
        folder = options.folder
        if (folder / MARK).exists() and options.fresh:
            shutil.rmtree(folder)
        if (folder / MARK).exists():
            return cls._known(options)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(
                f"{folder} holds something that is no demo and was left as it is; name another with --dir"
            )
        if options.resume:
            raise StoreError(f"{folder} holds no demo to resume; start one with `{again(folder)}`")
        port, enrolment_port = free_ports(2)
        stage = cls(
            folder=folder.resolve(), rounds=options.rounds or (QUICK if options.quick else DEMO).rounds, seed=options.seed or 0,
            joint=options.joint, full=options.full, central=options.central, quick=options.quick, port=port, enrolment_port=enrolment_port,
            given=str(folder),
        )  # fmt: skip
        stage.save()
        return stage

    @classmethod
    def _known(cls, options: Options) -> Self:
        folder = options.folder
        try:
            facts = json.loads((folder / MARK).read_text())
            if facts.pop("format") != FORMAT:
                raise ValueError("it was made by another version of hansa")
            stage = cls(**facts | {"folder": folder.resolve(), "given": str(folder)})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{folder} holds a broken demo ({error}); delete it and run anew with `{again(folder, '--fresh')}`"
            ) from None
        if not options.resume:
            state = "finished" if stage.summary.exists() else "unfinished"
            raise StoreError(
                f"{folder} holds a demo that is {state}. Go on with it: `{again(folder, '--resume')}`. "
                f"Or delete it and run anew: `{again(folder, '--fresh')}`."
            )
        for name in ("rounds", "seed"):
            asked = getattr(options, name)
            if asked is not None and asked != getattr(stage, name):
                raise StoreError(
                    f"the demo in {folder} has {name} {getattr(stage, name)}, not {asked}; leave --{name} away to "
                    f"resume it, or run anew with `{again(folder, '--fresh')}`"
                )
        stage = replace(stage, full=stage.full or options.full, central=stage.central or options.central)
        stage.save()
        return stage

    def save(self) -> None:
        facts: dict[str, Any] = asdict(self)
        del facts["folder"], facts["given"]
        write_file(self.folder / MARK, json.dumps({"format": FORMAT} | facts, indent=2).encode() + b"\n")

    def check_ports(self) -> None:
        """Raises HansaError when a port of an earlier start is taken: the seats name it, so it cannot change."""
        for port in (self.port, self.enrolment_port):
            if not port_is_free(port):
                raise HansaError(
                    f"port {port} is in use, and the seats of the demo in {self.given} name it; is the demo running "
                    f"already? Stop what listens there, or run anew with `{again(Path(self.given), '--fresh')}`"
                )

    @property
    def script(self) -> Script:
        return Script(self.rounds)

    @property
    def scale(self) -> Scale:
        return QUICK if self.quick else DEMO

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def texts(self) -> Path:
        return self.folder / "texts"

    @property
    def charter(self) -> Path:
        return self.folder / "charter.toml"

    @property
    def founding(self) -> Path:
        return self.folder / "founding"

    @property
    def seed_model(self) -> Path:
        return self.folder / "seed"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def baselines(self) -> Path:
        return self.folder / "baselines"

    @property
    def release(self) -> Path:
        return self.folder / "release"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    def seat(self, member: str) -> Path:
        return self.folder / "members" / member

    def site(self, partner: str) -> Path:
        """The folder of a partner's site: `site.toml`, `seat`, `state`."""
        return self.folder / "sites" / partner

    def advice(self) -> str:
        """How to go on after an interruption."""
        return f"Go on with: {again(Path(self.given), '--resume')}"


def again(folder: Path, *options: str) -> str:
    """The command for this folder."""
    where = [] if folder == Path("runs/demo") else ["--dir", str(folder)]
    return " ".join(["hansa demo", *where, *options])
