"""Training in a Ray actor, and the site's hold on it.

`TrainingActor` lives in a process of its own with torch and without gRPC: the two in one process abort now and then.
`RemoteTrainer` is the site's side: it hands arrays over through Ray's object store, follows progress, and starts
the actor again when its process dies. What a round gives does not depend on how often that happened
(`workers.trainer`).
"""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from commons.charter import Charter
from commons.clock import SystemClock
from commons.errors import HansaError
from commons.experts.map import ExpertMap
from commons.experts.tokenizer import FILE, Tokenizer
from commons.names import SiteId
from workers.backoff import pauses
from workers.data import Corpus, CorpusError
from workers.encoder import Encoder
from workers.gauge import Gauge
from workers.probe import Probe
from workers.ray_start import connected, ray
from workers.seal import Trained
from workers.site_file import SiteFile
from workers.training import Abandoned, Progress, TrainingFailed, Watch, Wish

if TYPE_CHECKING:
    from workers.trainer import Trainer

log = logging.getLogger("hansa.site")
Array = NDArray[np.float32]

EVALUATION_ROWS = 256
"""Windows of the held-out text that an evaluation reads."""
POLL_S = 0.5
SLOW_START_S = 20.0
"""After this long without an answer the actor is said to wait for the cluster."""


@dataclass(frozen=True)
class Bench:
    """What the actor trains with. Paths must exist on the machine Ray puts it on."""

    partner: str
    site: str
    text: Path
    public: Path | None
    probe: Path | None
    home: Path
    tokenizer: Path
    """Where the charter's lies, if it names one; texts' tokens are kept beside it."""
    threads: int


@dataclass(frozen=True)
class Failed:
    """Training said no: its message for the site's operator. Asked again it says the same."""

    message: str


@contextlib.contextmanager
def in_ray(file: SiteFile, stop: threading.Event) -> Iterator[RemoteTrainer]:
    """The site's trainer in the Ray that its file names, for the length of the `with` block (`workers.training.Begin`)."""
    cpus, gpus = file.ray.cpus, file.ray.gpus
    threads, rounds = max(1, int(cpus)), file.home / "rounds"
    tokenizer = file.home / FILE
    bench = Bench(file.partner, file.name, file.text, file.public, file.probe, rounds, tokenizer, threads)
    with connected(file.ray.address, namespace=f"hansa-{file.name}", cpus=cpus, gpus=gpus, stop=stop):
        trainer = RemoteTrainer(bench, cpus=cpus, gpus=gpus, stop=stop)
        trainer.start()
        try:
            yield trainer
        finally:
            trainer.close()


class TrainingActor:
    """One site's trainer. `train` and `evaluate` in turn; the other calls answer while they run."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._progress = Progress()
        self._abandoned = self._finished = 0
        self._turn = threading.Lock()
        self._begun: tuple[tuple[str, int], Gauge] | None = None
        """Run and number of the round that was begun ahead of its order, and what it took so far."""
        self._trainer: Trainer | None = None
        self._trains: tuple[object, ...] = ()
        self._encodes: tuple[Tokenizer, Encoder] | None = None

    def warm(self) -> None:
        """Load what training needs; done ahead, it does not count into the first round."""
        # What modules define stays: looking for garbage in it takes a fifth of the time of importing them.
        gc.disable()
        import workers.trainer  # noqa: F401

        gc.freeze()
        gc.enable()

    def progress(self) -> Progress:
        return self._progress

    def abandon(self, call: int) -> None:
        """End that call, and earlier ones, after the step they are in."""
        self._abandoned = call

    def finish(self, call: int) -> None:
        """End that call's round after the step it is in, with what it has trained."""
        self._finished = call

    def train(
        self,
        call: int,
        run: str,
        number: int,
        charter: Charter,
        base: Mapping[str, Array],
        not_before_ms: int,
    ) -> Trained | Failed:
        """One round. Calls are numbered from 1; one that comes while another trains waits for its end."""
        begun = self._begun
        if begun is not None and begun[0] != (run, number):
            self.abandon(call - 1)
        with self._turn:
            return self._train(call, run, number, charter, base, not_before_ms)

    def ahead(self, call: int, run: str, number: int, charter: Charter, not_before_ms: int) -> None:
        """As `workers.training.Training` says. What it cannot do, the round itself will say."""
        from workers.trainer import TrainingError

        def on_step(step: int, loss: float) -> bool:
            if self._abandoned >= call:
                raise Abandoned
            return False

        with self._turn:
            gauge = self._gauge(not_before_ms)
            self._begun = (run, number), gauge
            with contextlib.suppress(TrainingError, CorpusError, HansaError, KeyError, Abandoned):
                self._trainer_of(run, charter).ahead(
                    round_number=number,
                    learning=charter.learning.in_run(run),
                    on_step=on_step,
                    gauge=gauge,
                    experts=_experts(charter),
                )

    def _train(
        self,
        call: int,
        run: str,
        number: int,
        charter: Charter,
        base: Mapping[str, Array],
        not_before_ms: int,
    ) -> Trained | Failed:
        from workers.trainer import TrainingError

        learning, begun, self._begun = charter.learning.in_run(run), self._begun, None
        gauge = begun[1] if begun and begun[0] == (run, number) else self._gauge(not_before_ms)
        steps = learning.steps_in(number)
        self._progress = Progress(steps=steps)
        began, done, total = time.monotonic(), 0, 0.0
        tokens = learning.batch_size * learning.sequence_length

        def on_step(step: int, loss: float) -> bool:
            nonlocal done, total
            if self._abandoned >= call:
                raise Abandoned
            done, total = done + 1, total + loss  # without the steps made ahead
            speed = done * tokens / max(time.monotonic() - began, 1e-9)
            self._progress = Progress(step, steps, speed, total / done, gauge.device_ms)
            return self._finished >= call

        try:
            result = self._trainer_of(run, charter).train_round(
                round_number=number,
                base=base,
                learning=learning,
                on_step=on_step,
                gauge=gauge,
                experts=_experts(charter),
            )
        except (TrainingError, CorpusError, HansaError, KeyError) as error:
            return Failed(str(error))
        except Abandoned:
            return Failed("abandoned")
        return Trained(
            trunk_delta=result.trunk_delta,
            experts=result.experts,
            steps=result.steps,
            tokens=result.tokens,
            loss=result.loss,
            held_out_loss=result.held_out_loss,
            gflop=result.gflop,
            usage=result.usage,
            routed=result.routed,
            model_bytes=result.peak_model_bytes,
        )

    def evaluate(self, run: str, charter: Charter, state: Mapping[str, Array]) -> tuple[float, int] | Failed:
        """(loss in nats per byte, bytes) of the whole model on the site's held-out text, routing over all experts."""
        from workers.trainer import TrainingError

        self._progress = Progress()
        whole = charter.learning.model_copy(update={"routing": "joint"})
        length = whole.sequence_length
        try:
            trainer = self._made(run, charter.model_copy(update={"learning": whole}))
            corpus = self._corpus(self._bench.text, charter)
            loss = trainer.evaluate(state, corpus, limit=EVALUATION_ROWS)
        except (TrainingError, CorpusError, HansaError, KeyError) as error:
            return Failed(str(error))
        read = corpus.held_out_rows(length=length, limit=EVALUATION_ROWS)[:, 1:]
        return loss, int(corpus.encoder.sizes[read].sum())

    def probe(self, run: str, charter: Charter, state: Mapping[str, Array]) -> tuple[float, ...] | Failed:
        """Losses of `state` on the parts of the charter's probe, by the shard that trains."""
        from workers.trainer import TrainingError

        self._progress, wanted = Progress(), charter.probe
        try:
            encoder = self._encoder(charter)
            text = Probe.load(self._bench.probe, digest=wanted.text, size=wanted.bytes, encoder=encoder)
            with self._turn:
                trainer, limit = self._trainer_of(run, charter), wanted.rows // wanted.parts
                return tuple(trainer.evaluate(state, part, limit=limit) for part in text.parts(wanted.parts))
        except (TrainingError, CorpusError, HansaError, KeyError) as error:
            return Failed(str(error))

    def _gauge(self, not_before_ms: int) -> Gauge:
        processor = f"cpu/{self._bench.partner}/{self._bench.site}"
        return Gauge(SystemClock(), processor, not_before_ms=not_before_ms)

    def _trainer_of(self, run: str, charter: Charter) -> Trainer:
        """The run's trainer; made anew when the charter changed what it is built from."""
        learning, model = charter.learning, charter.model.model_dump_json()
        trains = (run, model, *charter.owners.items(), learning.sequence_length, bool(learning.public_share))
        if self._trainer is None or trains != self._trains:
            self._trainer = None  # gives its memory back before the next takes some
            self._trainer, self._trains = self._made(run, charter), trains
        return self._trainer

    def _made(self, run: str, charter: Charter) -> Trainer:
        from workers.trainer import Trainer

        public = self._bench.public if charter.learning.public_share else None
        return Trainer(
            model=charter.model,
            expert_map=ExpertMap.from_charter(charter),
            site=SiteId(self._bench.site),
            learning=charter.learning,
            corpus=self._corpus(self._bench.text, charter),
            public=None if public is None else self._corpus(public, charter),
            home=self._bench.home / run,
            threads=self._bench.threads,
        )

    def _corpus(self, path: Path, charter: Charter) -> Corpus:
        length, encoder = charter.learning.sequence_length, self._encoder(charter)
        before, self._progress = self._progress, replace(self._progress, why="reading its text")
        kept = self._bench.tokenizer.with_name("tokens")
        corpus = Corpus.load(path, sequence_length=length, encoder=encoder, kept=kept)
        self._progress = before
        return corpus

    def _encoder(self, charter: Charter) -> Encoder:
        wanted = charter.model.tokenizer
        if self._encodes is None or self._encodes[0] != wanted:
            self._encodes = wanted, Encoder.load(self._bench.tokenizer, wanted)
        return self._encodes[1]


def _experts(charter: Charter) -> Literal["kept", "base"]:
    return "base" if charter.privacy.noises_experts else "kept"


class RemoteTrainer:
    """`workers.training.Training`: the site's hold on its actor. One caller at a time."""

    def __init__(self, bench: Bench, *, cpus: float, gpus: float, stop: threading.Event) -> None:
        self._bench, self._stop = bench, stop
        self._kind = ray.remote(TrainingActor).options(num_cpus=cpus, num_gpus=gpus, max_concurrency=4)
        self._wants = f"{cpus:g} CPUs and {gpus:g} GPUs"
        self._actor: Any = None
        self._calls = 0
        self.restarts = 0

    def start(self) -> None:
        """Create the actor and let it load torch in the background."""
        self._actor = self._kind.remote(self._bench)
        self._actor.warm.remote()

    def close(self) -> None:
        """End the actor's process now; what it had not finished is done again by the next one."""
        if self._actor is not None:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.kill(self._actor)

    def train(
        self,
        run: str,
        number: int,
        charter: Charter,
        base: Mapping[str, Array],
        *,
        not_before_ms: int,
        watch: Watch,
    ) -> Trained:
        """As `workers.training.Training` says; a dead actor is replaced."""
        arrays = ray.put(dict(base))
        result = self._run(
            lambda actor, call: actor.train.remote(call, run, number, charter, arrays, not_before_ms), watch
        )
        assert isinstance(result, Trained)
        return result

    def ahead(self, run: str, number: int, charter: Charter, *, not_before_ms: int) -> None:
        """As `workers.training.Training` says; an actor that dies of it is replaced by the next call."""
        self._calls += 1
        with contextlib.suppress(ray.exceptions.RayError):
            self._actor.ahead.remote(self._calls, run, number, charter, not_before_ms)

    def evaluate(
        self, run: str, charter: Charter, state: Mapping[str, Array], *, watch: Watch
    ) -> tuple[float, int]:
        """(loss in nats per byte, bytes of held-out text); raises as `train` does."""
        arrays = ray.put(dict(state))
        loss, size = self._run(lambda actor, _: actor.evaluate.remote(run, charter, arrays), watch)
        return float(loss), int(size)

    def probe(
        self, run: str, charter: Charter, state: Mapping[str, Array], *, watch: Watch
    ) -> tuple[float, ...]:
        """As `workers.training.Training` says."""
        arrays = ray.put(dict(state))
        return tuple(map(float, self._run(lambda actor, _: actor.probe.remote(run, charter, arrays), watch)))

    def _run(self, call: Callable[[Any, int], Any], watch: Watch) -> Any:
        waits = pauses(first_s=1.0, longest_s=30.0)
        while True:
            try:
                self._calls += 1
                result = self._follow(call(self._actor, self._calls), watch)
            except ray.exceptions.RayActorError as error:
                self._replace(str(error).strip().splitlines()[0], next(waits), watch)
                continue
            except ray.exceptions.RayError as error:
                raise TrainingFailed(f"training failed at this site: {error}") from error
            if isinstance(result, Failed):
                raise TrainingFailed(result.message)
            return result

    def _follow(self, task: Any, watch: Watch) -> Any:
        """The task's result, watching it on the way."""
        asked = self._actor.progress.remote()
        began, last = time.monotonic(), Progress(why="the training process is starting")
        while True:
            done, _ = ray.wait([task], timeout=POLL_S)
            if done:
                return ray.get(task)
            if ray.wait([asked], timeout=0)[0]:
                last, asked = ray.get(asked), self._actor.progress.remote()
                began = time.monotonic()
            elif time.monotonic() - began > SLOW_START_S and not last.step:
                last = Progress(why=f"waiting for Ray to give {self._wants}")
            wish = watch(last)
            with contextlib.suppress(ray.exceptions.RayError):
                if wish is Wish.FINISH:
                    self._actor.finish.remote(self._calls)
                elif wish is Wish.ABANDON:
                    self._actor.abandon.remote(self._calls)
            if wish is Wish.ABANDON:
                raise Abandoned

    def _replace(self, why: str, pause_s: float, watch: Watch) -> None:
        self.restarts += 1
        text = f"the training process died ({why}); starting it again in {pause_s:.0f} s"
        log.warning("%s; if memory ran out, its operator adds some or proposes lean routing", text)
        watch(Progress(why=text))
        if self._stop.wait(pause_s):
            raise Abandoned
        self.start()
