"""The demo, start to end. `perform` reads top to bottom as what a consortium does.

Everything a user could do by hand is done the same way here: real processes, real enrolment, signed ballots, the
operator's seat. What takes long starts early and beside the rest: Ray, the coordinator, the seed model, baselines.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from commons.charter import Charter
from commons.errors import HansaError
from hansa.demo import cast, closing, summary
from hansa.demo.comparisons import Comparisons, last_step
from hansa.demo.founding import found, prepare_texts, seat_members, seat_sites, texts_of
from hansa.demo.processes import Child, Crew
from hansa.demo.ray_head import ADDRESS
from hansa.demo.stage import Options, Stage
from hansa.demo.training import train
from hansa.output import INTERRUPTED
from hansa.screen import Screen
from hansa.seeds import WEIGHTS, finish_seed_folder, write_plan

START_S = 90.0
"""How long one part may take to come up."""
LOOK_S = 0.1


def run_demo(options: Options) -> int:
    """`hansa demo`: the exit code. Ctrl-C stops everything it started and says how to resume."""
    stage = Stage.open(options)
    if stage.summary.exists() and options.resume and summary.is_complete(stage):
        summary.show(stage, summary.load(stage), as_json=options.as_json)
        return 0
    stage.check_ports()
    live = sys.stdout.isatty() and not options.as_json
    ray_folder = Path(tempfile.mkdtemp(prefix="hansa-ray-"))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        with _interruptible(), Crew(stage.logs, token) as crew:
            screen = Screen(live=live, out=sys.stderr if options.as_json else sys.stdout, title="hansa demo")
            with screen:
                facts = Performance(stage, crew, screen, ray_folder).perform()
    except KeyboardInterrupt:
        print(f"\nStopped; nothing runs on. {stage.advice()}", file=sys.stderr)
        return INTERRUPTED
    except HansaError as error:
        print(f"{error}\nLogs: {stage.logs}. {stage.advice()}", file=sys.stderr)
        return error.exit_code
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    summary.show(stage, facts, as_json=options.as_json)
    return 0


class Performance:
    """One run of the demo: the parts that are up, and how long each phase took."""

    def __init__(self, stage: Stage, crew: Crew, screen: Screen, ray_folder: Path) -> None:
        self.stage, self.crew, self.screen = stage, crew, screen
        self._ray_folder = ray_folder
        self._started = time.monotonic()
        self._phases: dict[str, float] = {}

    def perform(self) -> summary.Facts:
        """From an empty folder (or an interrupted demo) to the final card's facts."""
        stage, crew, say = self.stage, self.crew, self.screen.event
        ray = crew.start(
            "ray", ["-m", "hansa.demo.ray_head", str(self._ray_folder), str(max(2, os.cpu_count() or 2))]
        )
        with self._phase("founding"):
            say("Taking texts for the sites from installed packages")
            samples = prepare_texts(stage)
            charter = found(stage, samples)
            texts, public = texts_of(samples)
            say(f"{len(charter.members)} partners founded {charter.consortium.name!r} and signed its charter")
        coordinator = crew.start("coordinator", self._coordinator())
        seed = self._seed(charter, texts, public)
        with self._phase("coordinator"):
            self._wait(lambda: closing.coordinator_is_up(stage), "the coordinator", coordinator, ray, seed)
        with self._phase("sites"):
            seat_sites(stage, charter, samples)
            sites = self._start_sites(charter)
            seat_members(stage)
            say("All sites and members have enrolled with their own keys")
        with self._phase("seed"):
            self._wait_for_seed(charter, seed, coordinator, ray, *sites)
        comparisons = Comparisons(stage, charter, texts, public)
        with self._phase("training"):
            run = train(
                stage, charter, self.screen, lambda: self._beside(comparisons, coordinator, ray, *sites)
            )
        with self._phase("release"):
            released = closing.release(stage, crew, charter, run, texts, self.screen)
        with self._phase("baselines"):
            while comparisons.advance(crew):
                self.screen.aside(comparisons.progress())
                crew.check(coordinator, ray, *sites)
                time.sleep(LOOK_S)
        with self._phase("mlflow"):
            mirrored = closing.wait_for_mlflow(stage, self.screen)
        with self._phase("journal"):
            closed = closing.close(stage, run, mirrored=mirrored)
        facts = summary.gather(
            stage, charter, released=released, closed=closed, compared=comparisons.losses(),
            seed_losses=json.loads((stage.baselines / "seed" / "result.json").read_text())["losses"],
            seconds=time.monotonic() - self._started, phases=self._phases,
        )  # fmt: skip
        summary.save(stage, facts)
        return facts

    def _coordinator(self) -> list[str]:
        stage = self.stage
        return [
            "-m", "hansa", "coordinator", "start", "--home", str(stage.home), "--charter", str(stage.charter),
            "--founding", str(stage.founding), "--log-key", str(stage.keys / f"{cast.CONSORTIUM}.key"),
            "--listen", f"127.0.0.1:{stage.port}", "--enrolment", f"127.0.0.1:{stage.enrolment_port}",
        ]  # fmt: skip

    def _seed(self, charter: Charter, texts: dict[str, Path], public: Path) -> Child:
        """The seed's training, or a process that ends at once when it is there."""
        folder = self.stage.baselines / "seed"
        if (folder / "result.json").exists():
            return self.crew.start("seed", ["-c", "pass"])
        self.stage.seed_model.mkdir(parents=True, exist_ok=True)
        (self.stage.seed_model / WEIGHTS).unlink(missing_ok=True)
        plan = write_plan(
            folder, what="seed", charter=charter, texts=texts, public=public, seed_model=self.stage.seed_model,
            phase=self.stage.scale.seed_phase,
        )  # fmt: skip
        return self.crew.start("seed", ["-m", "hansa.baselines", str(plan)])

    def _start_sites(self, charter: Charter) -> list[Child]:
        """Each as its operator would, but all on the demo's Ray: they share its CPUs, and wait for it by themselves."""
        address = str(self._ray_folder / ADDRESS)
        files = {site.name: self.stage.site(site.partner) / "site.toml" for site in charter.sites}
        return [
            self.crew.start(name, ["-m", "hansa", "site", "start", str(file)], HANSA_RAY_ADDRESS=address)
            for name, file in files.items()
        ]

    def _wait_for_seed(self, charter: Charter, seed: Child, *needed: Child) -> None:
        steps = self.stage.scale.seed_phase["steps"]

        def progress() -> str:
            return f"training the seed model, step {last_step(seed)}/{steps}"

        self._wait(lambda: not seed.running(), "the seed model", *needed, aside=progress)
        self.crew.check(seed)
        finish_seed_folder(self.stage.seed_model, charter)
        self.screen.event("The seed model is trained on public text")

    def _beside(self, comparisons: Comparisons, *needed: Child) -> str:
        """Look after the rest while the run goes on; a line about it."""
        self.crew.check(*needed)
        comparisons.advance(self.crew)
        return comparisons.progress()

    def _wait(
        self, ready: Callable[[], bool], what: str, *needed: Child, aside: Callable[[], str] | None = None
    ) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            self.crew.check(*needed)
            if aside:
                self.screen.aside(aside())
            elif time.monotonic() > deadline:
                raise HansaError(f"{what} did not come up within {START_S:.0f} s; its log says why")
            time.sleep(LOOK_S)
        self.screen.aside()

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._phases[name] = round(time.monotonic() - started, 2)


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM interrupts like Ctrl-C; once interrupted, a second signal does not disturb the stopping."""

    def interrupt(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
