"""NVIDIA FLARE as a proof-of-concept deployment (POC): a server and its sites as services of their own, mutual TLS.

Three configurations: `nvflare` exchanges PyTorch tensors in memory, `nvflare-offload` does so with
`enable_tensor_disk_offload`, `nvflare-numpy` exchanges numpy arrays, which is the recipes' default. In all three the
controller is FLARE's own FedAvg, which adds each answer up as it arrives; the start scripts' limit of malloc arenas
holds, and memory is given back at the end of rounds as FLARE's guide advises (every round for large models, else
every fifth). Trainers run within the sites' job processes, the default.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.link_bytes import LinkBytes
from benchmarks.peers.driving import Job, PeerError, Told, wait

PORT = 8002
"""Of the POC's server, for its sites."""
APP = Path(__file__).parent / "nvflare_app"
LARGE_MB = 100
ROLES = {
    "runner_process": "server-job",
    "worker_process": "site-job",
    "server_train": "server",
    "client_train": "site",
    "job.py": "command",
}


@dataclass(frozen=True)
class NVFlare:
    name: str
    exchange: str
    offload: bool = False
    package: str = "nvflare"
    server: frozenset[str] = frozenset({"server", "server-job"})

    def role(self, command: str) -> str:
        return next((role for key, role in ROLES.items() if key in command), "other")

    def link(self) -> LinkBytes:
        return LinkBytes(port=PORT)

    def drive(self, job: Job, check: Callable[[], None]) -> Told:
        gc_rounds = 1 if job.mb >= LARGE_MB else 5
        scratch = job.work / "scratch"
        scratch.mkdir()
        environment = {
            "HOME": str(job.work),
            "NVFLARE_POC_WORKSPACE": str(job.work / "poc"),
            "PATH": f"{job.environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": str(scratch),  # tensors are offloaded here: on disk, not in a memory file system
        }
        options = {"sites": job.sites, "mb": job.mb, "rounds": job.rounds, "exchange": self.exchange}
        command = [job.program("python"), str(APP / "job.py"), "--events", str(job.events)]
        command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
        command += ["--gc-rounds", str(gc_rounds), *(["--offload"] if self.offload else [])]
        begun = time.time()
        client = job.start("job", command, environment)

        def ended() -> bool:
            if client.poll() is not None and not job.happened("done"):
                raise PeerError(f"the job ended with {client.returncode}; see {job.work / 'job.log'}")
            return bool(job.happened("done"))

        wait(job, ended, "the end of the job", check)
        provisioned, connected, submitted = (
            job.happened(event)[0]["at"] for event in ("provisioned", "connected", "submitted")
        )
        exchange = {"numpy": "numpy arrays", "pytorch": "PyTorch tensors"}[self.exchange]
        offload = "offloaded to disk" if self.offload else "in memory"
        return Told(
            f"POC, mutual TLS, {exchange} {offload}, memory given back every {gc_rounds} round(s), model not saved",
            begun=begun,
            connected=connected,
            submitted=submitted,
            notes=(f"provisioning took {provisioned - begun:.1f} s of start_to_done_s",),
        )


NUMPY = NVFlare("nvflare-numpy", "numpy")
TENSORS = NVFlare("nvflare", "pytorch")
OFFLOAD = NVFlare("nvflare-offload", "pytorch", offload=True)
