"""Seed models as Hugging Face folders, and the baselines: trained in a process of their own, with progress in a log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commons.charter import Charter
from commons.errors import HansaError, StoreError
from commons.experts.families import FAMILIES
from commons.experts.tokenizer import FILE, put_tokenizer
from commons.experts.whole import experts_each
from commons.identity import write_file

WEIGHTS = "model.safetensors"


def make_seed_model(
    folder: Path, *, charter: Path, text: Path, steps: int, whole: bool = False
) -> dict[str, Any]:
    """`hansa seed make`: train it and write the folder. `whole`: with as many experts as each site owns, so that each begins
    with copies of all. Raises StoreError when it exists, HansaError when training fails or sites own unequal numbers."""
    from hansa.charters import load_charter
    from hansa.tokenizers import beside, check_beside

    if (folder / WEIGHTS).exists():
        raise StoreError(f"{folder} holds a model already and was left as it is; choose another folder")
    loaded, tokenizer = load_charter(charter), beside(charter)
    check_beside(charter, loaded)
    each = experts_each(loaded) if whole else None
    if whole and each is None:
        raise HansaError(
            f"{charter} has no seed for each site: that takes several sites that own as many experts as one another, and as "
            "many as a token is routed to; change it, or make a seed of all experts, without --whole"
        )
    plan = write_plan(
        folder, what="seed", charter=loaded, texts={"public": text}, public=text, seed_model=folder,
        tokenizer=tokenizer.resolve(), phase={"steps": steps, "batch_size": 16}, experts=each,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "hansa.baselines", str(plan)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise HansaError(
            f"the seed model was not made: {(done.stderr.strip() or 'no reason given').splitlines()[-1]}"
        )
    experts = each or len(loaded.experts)
    finish_seed_folder(folder, loaded, tokenizer, each)
    losses = json.loads((folder / "result.json").read_text())["losses"]
    return {"path": folder, "held_out_loss": losses["public"], "experts": experts}


def write_plan(
    folder: Path,
    *,
    what: str,
    charter: Charter,
    texts: Mapping[str, Path],
    public: Path,
    seed_model: Path,
    tokenizer: Path = Path(FILE),
    alone: str | None = None,
    phase: Mapping[str, Any] | None = None,
    experts: int | None = None,
) -> Path:
    """A plan for `python -m hansa.baselines`; its path. The result goes to `folder/result.json`.

    `tokenizer`: where the charter's lies, if it names one. `experts`: of a seed for each site, which has no readers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = charter.model.shared if experts else charter.model
    owners = [(e, site.name) for site in charter.sites for e in site.experts]
    plan = {
        "what": what,
        "model": model.model_dump(mode="json"),
        "learning": charter.learning.model_dump(mode="json"),
        "owners": dict(owners[:experts]),
        "texts": {domain: str(path) for domain, path in texts.items()},
        "alone": alone,
        "public": str(public),
        "seed_file": str(seed_model / WEIGHTS),
        "result": str(folder / "result.json"),
        "home": str(folder / "state"),
        "tokenizer": str(tokenizer),
    }
    if phase:
        plan["phase"] = dict(phase)
    path = folder / "plan.json"
    write_file(path, json.dumps(plan, indent=2).encode() + b"\n")
    return path


def finish_seed_folder(
    folder: Path, charter: Charter, tokenizer: Path | None = None, experts: int | None = None
) -> None:
    """Beside the weights: config.json and the tokenizer, so that transformers loads the folder. `experts` as in `write_plan`."""
    model = charter.model
    count = experts or len(charter.experts)
    config = FAMILIES[model.family].hf_config(model.config, count, end=model.tokenizer.end)
    write_file(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")
    put_tokenizer(folder, model.tokenizer, tokenizer)
