"""`hansa site`: take part in training with one's own text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hansa.options import Json
from hansa.output import answer

app = typer.Typer(no_args_is_help=True)

SiteFile = Annotated[Path, typer.Argument(help="The site's file, written by `hansa site join`.")]
SITE_FILE = Path("site.toml")
Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="Dashboard URL of the Ray cluster.")
]
ADDRESS = "http://127.0.0.1:8265"
JobId = Annotated[str, typer.Argument(help="The job `hansa site submit` named.")]


@app.callback()
def sites() -> None:
    """Take part in training with your own text; it never leaves your machine."""


@app.command("join")
def join(
    invite: Annotated[Path, typer.Argument(help="The site's invite, from the coordinator's operator.")],
    key: Annotated[
        Path, typer.Option("--key", help="Your partner's secret key; it vouches for the site's own key.")
    ],
    text: Annotated[
        Path, typer.Option("--text", help="The site's text: a UTF-8 file, or a folder of .txt files.")
    ],
    folder: Annotated[Path, typer.Option("--folder", help="The site's folder, to be written.")] = Path(
        "site"
    ),
    public: Annotated[
        Path | None, typer.Option("--public", help="The consortium's public text, if it has one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Join as a site: make the site's keys, exchange the invite, and write FOLDER/site.toml.

    \b
    Example:
      hansa site join home/invites/site-alder-site.invite --key keys/alder.key --text texts/code.txt --folder alder/site
    """
    from hansa.joining import join_as_site

    file = join_as_site(invite, key, folder, text=text, public=public)
    answer({"site_file": file}, f"Wrote {file}. Start the site: hansa site start {file}", as_json=as_json)


@app.command("start")
def start(file: SiteFile = SITE_FILE, as_json: Json = False) -> None:
    """Start a site and stay; Ctrl-C stops it. Started again, it goes on where it was.

    It checks every order itself before training: who signed it, under which charter, at what price.

    \b
    Example:
      hansa site start alder/site/site.toml
    """
    from hansa.hosting import run_site_here

    raise typer.Exit(run_site_here(file, as_json=as_json))


@app.command("verify")
def verify(file: SiteFile = SITE_FILE, as_json: Json = False) -> None:
    """Check the consortium as a site does before training: log, signatures, charter, every executed vote, own policy.

    What does not hold is told by the number of its step.

    \b
    Example:
      hansa site verify alder/site/site.toml
    """
    from hansa.hosting import verify_as_site

    verified = verify_as_site(file)
    text = [
        *verified["steps"],
        f"Charter {verified['version']} holds.",
    ]
    answer(verified, text, as_json=as_json)


@app.command("lodge")
def lodge(
    ballot: Annotated[Path, typer.Argument(help="The signed ballot (`hansa proposal vote --print-note`).")],
    file: SiteFile = SITE_FILE,
    out: Annotated[
        Path, typer.Option("--out", help="Where to write the ballot with this site's word.")
    ] = Path("ballot.lodged"),
    as_json: Json = False,
) -> None:
    """Keep a member's ballot at this site, so that no coordinator can do as if it had never been cast.

    The site hands it in once more, and from then on trains on nothing that a vote without it made law.

    \b
    Example:
      hansa site lodge ballot.note alder/site/site.toml --out ballot.lodged
    """
    from hansa.hosting import lodge_here

    found = lodge_here(ballot, file, out)
    text = [
        f"{found['voter']}'s ballot is kept here; {found['coordinator']}.",
        (
            f"Give {found['file']} to {found['voter']}: several sites' words prove it to others "
            "(hansa charter proof --lodged FILE)."
        ),
    ]
    answer(found, text, as_json=as_json)


@app.command("submit")
def submit(file: SiteFile = SITE_FILE, address: Address = ADDRESS, as_json: Json = False) -> None:
    """Run the same site as a job on a Ray cluster of your own.

    \b
    Example:
      hansa site submit alder/site/site.toml --address http://127.0.0.1:8265
    """
    from workers import ray_job

    job = ray_job.submit(file, address)
    text = f"Submitted {job}. See: hansa site status {job} --address {address}"
    answer({"job": job, "address": address}, text, as_json=as_json)


@app.command("status")
def status(job: JobId, address: Address = ADDRESS, as_json: Json = False) -> None:
    """How a submitted site is doing.

    \b
    Example:
      hansa site status hansa-site-alder
    """
    from workers import ray_job

    found = ray_job.status(job, address)
    answer({"job": job, "status": found}, f"{job}: {found}", as_json=as_json)


@app.command("logs")
def logs(job: JobId, address: Address = ADDRESS, as_json: Json = False) -> None:
    """What a submitted site has printed.

    \b
    Example:
      hansa site logs hansa-site-alder
    """
    from workers import ray_job

    text = ray_job.logs(job, address)
    answer({"job": job, "logs": text}, text, as_json=as_json)


@app.command("stop")
def stop(job: JobId, address: Address = ADDRESS, as_json: Json = False) -> None:
    """Stop a submitted site. Submitted again, it goes on where it was.

    \b
    Example:
      hansa site stop hansa-site-alder
    """
    from workers import ray_job

    ray_job.stop(job, address)
    answer({"job": job, "stopped": True}, f"{job} stopped.", as_json=as_json)
