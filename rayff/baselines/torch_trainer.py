"""The worker group of backpropagation: Ray Train's TorchTrainer as a pipeline of one stage.

    command -1-> inbox of each worker -2-> [worker] -3-> answers of all workers -4-> result

TorchTrainer places the workers, joins them in a process group and wraps the network (DDP). (1, 4)
The driver sends them commands, so that the loop, snapshots, signals and recovery are those of
local losses. (2, 3) Ray's queues hold references: the process of a queue unpickles what it holds,
and would import torch for a command.
"""

from __future__ import annotations

import copy
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from ray.util.queue import Empty, Queue
from torch import nn

from rayff.baselines.learner import EndToEndLearner
from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.config.kernels import Kernels
from rayff.config.resolved import ResolvedConfig
from rayff.config.text import plural
from rayff.config.train_config import Precision
from rayff.distributed.actor_group import Capabilities
from rayff.distributed.failure_policy import PATIENCE_S
from rayff.distributed.failures import StageFailedError
from rayff.distributed.placement import NoRoomError, bundle
from rayff.distributed.planner import all_reduce_backend
from rayff.distributed.reading import Readers, SharedImages
from rayff.distributed.stage_actor import device_capabilities
from rayff.engine.commands import Batch, Command
from rayff.engine.learner import StageSpec, States
from rayff.engine.pipeline import Result
from rayff.engine.replicas import Replica, merge
from rayff.engine.run import PreparedRun, Run
from rayff.engine.stage import Stage
from rayff.kernels.precision import DTYPES, configure_torch
from rayff.kernels.timing import once_s
from rayff.learning.chain import Activations
from rayff.learning.generators import Share
from rayff.models.architecture import Architecture
from rayff.partition.boundaries import Costs
from rayff.partition.plan import Plan, StageResources

POLL_S = 0.5
"""How often the driver, while it waits for an answer, checks that the workers are alive."""
NOTICE_S = 20.0
"""After which the user learns that workers are waited for; they take some seconds anyway."""
_END_TIMEOUT_S = 20.0
_TIMED_IMAGES = 16


@dataclass(frozen=True, kw_only=True)
class Describe:
    """Return the capabilities of the device."""


@dataclass(frozen=True, kw_only=True)
class TimeStep:
    """Time a training step."""

    config: ResolvedConfig
    network: Architecture


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """Build the network: with initial weights, or from the layers of a snapshot."""

    config: ResolvedConfig
    network: Architecture
    data: list[Any]
    """One reference to the images of every split."""
    states: list[Any]
    """One reference to the layers of a snapshot, or none."""


Message = Describe | TimeStep | SetUp | Command


class Worker:
    """One of the workers.

    Args:
        device: where it computes.
        replica: which of the workers it is.
    """

    def __init__(self, device: torch.device, replica: Replica) -> None:
        self.device = device
        self.replica = replica
        self.stage: Stage | None = None

    def handle(self, message: Message) -> Any:
        """Carry out a message of the driver; return its answer."""
        if isinstance(message, Describe):
            return device_capabilities(self.device)
        if isinstance(message, TimeStep):
            return self._time_step(message.config, message.network)
        if isinstance(message, SetUp):
            self._set_up(message)
            return None
        assert self.stage is not None, "set_up comes before the first command"
        _, report = self.stage.handle(message, None)
        return report

    def _spec(self, config: ResolvedConfig, network: Architecture) -> StageSpec:
        return StageSpec(architecture=network, is_last=True, config=config, replica=self.replica)

    def _set_up(self, message: SetUp) -> None:
        self.stage = None  # free the one before first
        spec = self._spec(message.config, message.network)
        states = ray.get(message.states[0]) if message.states else None
        learner = EndToEndLearner(spec, self.device, states, distributed)
        # a copy, which the object store's own may leave memory for
        images = copy.deepcopy(ray.get(message.data[0]))
        self.stage = Stage(spec, self.device, learner, images, Readers())

    def _time_step(self, config: ResolvedConfig, network: Architecture) -> float:
        """Return the seconds that a batch takes, by a few of its images."""
        learner = EndToEndLearner(self._spec(config, network), self.device)
        share = len(self.replica.rows(config.recipe.batch_size))
        images = max(1, min(share, _TIMED_IMAGES))
        pixels = torch.randn(
            (images, *network[0].in_shape),
            device=self.device,
            dtype=DTYPES[config.precision],
        )
        labels = torch.zeros(images, dtype=torch.int64, device=self.device)
        batch = Batch(activations=Activations(features=pixels), labels=labels)
        seconds = [
            once_s(lambda: learner.learn(batch, Share(step=0, batch_size=images)), self.device)
            for _ in range(3)
        ]
        return min(seconds) * share / images


def distributed(network: nn.Module) -> nn.Module:
    """Wrap a network so that its gradients are the mean over all workers, where there are more."""
    wrapped: nn.Module = ray.train.torch.prepare_model(network)
    return wrapped


def work(config: dict[str, Any]) -> None:
    """Carry out messages until there are no more; runs on every worker."""
    configure_torch(config["threads"])
    context = ray.train.get_context()
    replica = Replica(index=context.get_world_rank(), count=context.get_world_size())
    worker = Worker(ray.train.torch.get_device(), replica)
    inbox, answers = config["inboxes"][replica.index], config["answers"]
    while references := inbox.get():
        try:
            answer = worker.handle(ray.get(references[0]))
        except UserError as error:
            answer = error
        answers.put((replica.index, [ray.put(answer)]))


@dataclass
class WorkerGroup:
    """Workers that were started; an ActorGroup."""

    num_actors: int
    resources: StageResources
    """Of each."""
    inboxes: list[Queue]
    answers: Queue
    fit: Fit
    warn: Callable[[str], None]
    _waiting: list[deque[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._waiting = [deque() for _ in range(self.num_actors)]

    @property
    def node_names(self) -> tuple[str, ...]:
        """Nothing: TorchTrainer decides where the workers are."""
        return ()

    def free_room(self, more: int) -> bool:
        """Return False: as many workers as at the start divide each batch."""
        return False

    def capabilities(self) -> list[Capabilities]:
        """Wait for the workers, and return what the device of each can do."""
        with activity(f"starting {plural(self.num_actors, 'worker')}"):
            self.send(Describe())
            return self.receive(self.warn)

    def autotune(self, precision: Precision) -> tuple[Kernels, ...]:
        """Return torch's convolution: backpropagation has no other."""
        return (Kernels(),)

    def measure(self, run: Run) -> Costs:
        """Time a step on all of them at once."""
        network = run.architecture
        with activity("timing a step"):
            self.send(TimeStep(config=run.resolved, network=network))
            seconds = max(self.receive())
        even = [seconds / len(network)] * len(network)
        return Costs(layer_s=even, boundary_s=[0.0] * len(network))

    def set_up(
        self, run: Run, plan: Plan, images: SharedImages, states: States | None, window: int
    ) -> WorkerPipeline:
        """Give every worker the network and the data, and the layers of a snapshot."""
        data = [images.reference]
        kept = [] if states is None else [ray.put(states)]
        config, network = run.resolved, plan.architecture
        with activity(f"setting up {plural(self.num_actors, 'worker')}"):
            self.send(SetUp(config=config, network=network, data=data, states=kept))
            self.receive()
        return WorkerPipeline(self, window)

    def send(self, message: Message) -> None:
        """Give every worker a message."""
        try:
            references = [ray.put(message)]
            for inbox in self.inboxes:
                inbox.put(references)
        except RayError as error:
            raise StageFailedError("a worker's queue", error) from error

    def receive(self, warn: Callable[[str], None] | None = None) -> list[Any]:
        """Return what each worker answers to the oldest message that it has not answered.

        Args:
            warn: called when it takes long, where resources may be missing.

        Raises:
            UserError: a worker raised it.
            StageFailedError: a worker died.
            NoRoomError: the workers did not start in time.
        """
        start = warned = time.monotonic()
        while not all(self._waiting):
            try:
                rank, (answer,) = self.answers.get(timeout=POLL_S)
                self._waiting[rank].append(ray.get(answer))
            except Empty:
                self.fit.check()
                now = time.monotonic()
                if warn is None or now - warned < NOTICE_S:
                    continue
                warned = now
                wanted = f"{plural(self.num_actors, 'worker')} of {self.resources}"
                if now - start > PATIENCE_S:
                    raise NoRoomError(
                        f"waited {PATIENCE_S:g} s for {wanted}; use fewer --workers or "
                        "come back later"
                    ) from None
                warn(f"waiting for {wanted}")
            except RayError as error:
                self.fit.check()
                raise StageFailedError("a worker or its queue", error) from error
        answers = [waiting.popleft() for waiting in self._waiting]
        for answer in answers:
            if isinstance(answer, UserError):
                raise answer
        return answers


class Fit:
    """Runs TorchTrainer.fit in a thread, until the workers have ended."""

    def __init__(self, trainer: ray.train.torch.TorchTrainer) -> None:
        self._trainer = trainer
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="torch-trainer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # noqa: BLE001  it belongs to the thread that asks
            self._error = error

    def check(self) -> None:
        """Raise a StageFailedError where the workers have ended."""
        if not self._thread.is_alive():
            failures: dict[int, Exception] = getattr(self._error, "worker_failures", {})
            # where a process died, the other workers fail in an all-reduce
            dead = {r: e for r, e in failures.items() if hasattr(e, "health_check_failure")}
            for rank, cause in sorted((dead or failures).items()):
                raise StageFailedError(f"worker {rank}", cause) from self._error
            raise StageFailedError("the group of workers", self._error) from self._error

    def wait(self, seconds: float) -> None:
        """Wait until the workers have ended, with a timeout."""
        self._thread.join(seconds)


class WorkerPipeline:
    """The workers as a pipeline of one stage with replicas.

    Args:
        workers: set up.
        window: commands in flight at most.
    """

    def __init__(self, workers: WorkerGroup, window: int) -> None:
        self.workers = workers
        self.window = window
        self._flying: deque[Command] = deque()

    @property
    def in_flight(self) -> int:
        """Commands that the workers have and have not answered."""
        return len(self._flying)

    def stream(self, commands: Iterable[Command]) -> Iterator[Result]:
        """Carry out commands in order and give back their results in the same order.

        Raises:
            UserError: a worker raised it.
            StageFailedError: a worker died.
            RunError: the workers' weights differ.
        """
        for command in commands:
            self._flying.append(command)
            self.workers.send(command)
            while len(self._flying) >= self.window:
                yield self._land()
        while self._flying:
            yield self._land()

    def _land(self) -> Result:
        reports = [merge(self.workers.receive())]
        return self._flying.popleft(), reports


@contextmanager
def open_worker_group(
    prepared: PreparedRun,
    resources: StageResources,
    count: int,
    warn: Callable[[str], None],
    patience_s: float = PATIENCE_S,
) -> Iterator[WorkerGroup]:
    """Start the workers; they are gone at the end, also after a failure."""
    name = prepared.directory.name
    options = {"num_cpus": 0}
    queues = [Queue(actor_options=options) for _ in range(count + 1)]
    config = {"inboxes": queues[:count], "answers": queues[count], "threads": resources.threads}
    with tempfile.TemporaryDirectory() as scratch:  # TorchTrainer wants one; nothing stays in it
        trainer = ray.train.torch.TorchTrainer(
            work,
            train_loop_config=config,
            torch_config=ray.train.torch.TorchConfig(backend=all_reduce_backend(resources)),
            scaling_config=ray.train.ScalingConfig(
                num_workers=count,
                use_gpu=resources.gpus > 0,
                resources_per_worker=bundle(resources),
                placement_strategy=prepared.config.placement.upper(),
            ),
            run_config=ray.train.RunConfig(name=name, storage_path=scratch),
        )
        fit = Fit(trainer)
        try:
            yield WorkerGroup(count, resources, queues[:count], queues[count], fit, warn)
            for inbox in queues[:count]:
                inbox.put([])
            fit.wait(_END_TIMEOUT_S)
        finally:
            for queue in queues:
                queue.shutdown(force=True)
            fit.wait(_END_TIMEOUT_S)
