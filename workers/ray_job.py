"""A site as a job on its owner's Ray cluster: the same program, started by Ray instead of by hand.

Speaks to the cluster's dashboard (Ray's job API). The site's files must be on a path the cluster's machines share,
and this package installed there; a site goes on where it was, so a job may be stopped and submitted again.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from commons.errors import HansaError, Unreachable
from workers import site_file
from workers.ray_start import ADDRESS_VARIABLE, ray

T = TypeVar("T")
_PASSED_ON = (
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "https_proxy",
    "no_proxy",
    "PYTHONPATH",
)
"""Environment the job needs as this process has it: Ray's authentication and the way out of the network."""
_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")


def submit(file: Path, address: str) -> str:
    """Start the site of `file` on the cluster with dashboard `address` (http://host:8265); the job's id.

    A site that runs there already is not started twice: its job's id is returned. Raises ConfigError for a wrong
    site file, Unreachable when no dashboard answers.
    """
    site = site_file.load(file)
    name = f"hansa-site-{site.name}"
    client = _client(address)
    jobs = [j for j in _asked(address, client.list_jobs) if (j.submission_id or "").startswith(f"{name}-")]
    running = [str(j.submission_id) for j in jobs if str(j.status.value) not in _ENDED]
    if running:
        return running[0]
    started = _asked(
        address,
        lambda: client.submit_job(
            entrypoint=shlex.join([sys.executable, "-m", "hansa", "site", "start", str(site.path)]),
            submission_id=f"{name}-{len(jobs) + 1}",
            runtime_env={"env_vars": _environment()},
        ),
    )
    return str(started)


def status(job: str, address: str) -> str:
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED, with Ray's message when it has one."""
    client = _client(address)
    found = _asked(address, lambda: client.get_job_info(job))
    state = str(found.status.value)
    return f"{state}: {found.message}" if found.message and state in _ENDED else state


def logs(job: str, address: str) -> str:
    """All the job has printed so far."""
    client = _client(address)
    return str(_asked(address, lambda: client.get_job_logs(job)))


def stop(job: str, address: str) -> None:
    """Ask the job to stop; nothing happens when it has ended. The site keeps what it has finished."""
    client = _client(address)
    _asked(address, lambda: client.stop_job(job))


def _environment() -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    return passed | {ADDRESS_VARIABLE: "auto", "RAY_USAGE_STATS_ENABLED": "0"}


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    return _asked(address, lambda: JobSubmissionClient(address))


def _asked(address: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except ConnectionError as error:
        raise Unreachable(
            f"no Ray dashboard answers at {address} ({error}); its operator starts the cluster with "
            "`ray start --head --include-dashboard=true`"
        ) from error
    except (RuntimeError, ray.exceptions.RayError) as error:
        raise HansaError(
            f"the Ray cluster at {address} refused: {str(error).strip()[:500]}; check the job's id, and RAY_AUTH_TOKEN"
        ) from error
