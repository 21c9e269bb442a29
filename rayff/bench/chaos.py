"""The command `rayff bench chaos`: Kill stages, nodes and drivers at random moments.

Trainings on a cluster of several raylets on this machine, one after the other. Every fault is a
SIGKILL:
  stage     a stage actor, while it computes, sends, copies a snapshot or starts
  node      a raylet with everything under it; a new node joins a little later
  driver    the training command itself, which is started again with --resume

A round ends when its training is complete. Then weights and optimizer state of every layer are
compared with those of the same training undisturbed, bit for bit. Exit code 0 if they were the
same in every round, else 1. A seed gives the same faults, but not at exactly the same moments.

Examples:
  rayff bench chaos --minutes 2
  rayff bench chaos --minutes 15 --seed 7 --save bench-chaos.json
  rayff bench chaos --minutes 3 --kinds stage,node
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from rayff.bench.command import BenchCommand, benchmark
from rayff.bench.results import Results
from rayff.config.errors import RunError, UserError
from rayff.distributed.local_cluster import LocalNodes
from rayff.runs.metrics import METRICS_FILE, read_metrics
from rayff.runs.recorder import EVENTS

KINDS = ("stage", "node", "driver")

ROUND_TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class ChaosCommand(BenchCommand):
    """The options."""

    minutes: float = 2.0
    """Minutes after which no new training begins."""
    faults: int | None = None
    """End after so many faults instead, when the current training is complete."""
    seed: int = 0
    """Seed of what is killed and when."""
    kinds: str = "stage,node,driver"
    """What is killed: stage, node and driver, with commas between them."""
    nodes: int = 3
    """Nodes of one CPU each; the training has as many stages, up to three."""
    epochs: int = 8
    """Epochs of each training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not set(self.kinds.split(",")) <= set(KINDS):
            raise UserError(f"--kinds {self.kinds}: known are {', '.join(KINDS)}")


@dataclass
class Fault:
    """One kill and its consequences; seconds from the kill on."""

    kind: str
    what: str
    at_s: float
    """Wall-clock time."""
    noticed_s: float | None = None
    recovered_s: float | None = None
    replayed: int | None = None
    """Batches that were trained again."""


@dataclass
class Round:
    """One training under attack."""

    number: int
    faults: list[Fault] = field(default_factory=list)
    identical: bool = False
    seconds: float = 0.0
    problem: str | None = None


def measure(command: ChaosCommand, results: Results) -> None:
    """Fill in the table of faults by kind, and whether the bits are the same."""
    with TemporaryDirectory(prefix="rayff-chaos-") as folder:
        rounds = attack(command, Path(folder))
    faults = [dataclasses.asdict(fault) for each in rounds for fault in each.faults]
    rows = []
    for kind in KINDS:
        some = [fault for fault in faults if fault["kind"] == kind]
        named = ("noticed_s", "recovered_s", "replayed")
        lists = {name: [fault[name] for fault in some] for name in named}
        rows.append({"fault": kind, "injected": len(some), **lists})
    results.table(
        f"{len(faults)} faults in {len(rounds)} trainings, seed {command.seed}: until they were "
        "noticed, until training went on, batches trained again; median (least to most)",
        rows,
        "fault injected noticed_s recovered_s replayed",
    )
    different = [each for each in rounds if not each.identical]
    results.notes = [
        f"final weights and optimizer state: {len(rounds) - len(different)} of {len(rounds)} "
        "trainings bit-identical to the undisturbed one",
        *(f"round {each.number} (--seed {command.seed}): {each.problem}" for each in different),
    ]
    results.figures["rounds"] = [dataclasses.asdict(each) for each in rounds]
    results.passed = not different


main = benchmark(ChaosCommand, measure)


def attack(command: ChaosCommand, folder: Path) -> list[Round]:
    """Train undisturbed once, then under attack until the time is over."""
    rng = random.Random(command.seed)
    deadline = time.monotonic() + 60 * command.minutes
    rounds: list[Round] = []
    with LocalNodes(command.nodes) as nodes:
        print("training undisturbed, for comparison", flush=True)
        undisturbed = Training(folder / "undisturbed", command, nodes.environment)
        if undisturbed.driver.wait(ROUND_TIMEOUT_S):
            raise RunError(f"the undisturbed training failed: {undisturbed.last_lines()}")

        def goes_on() -> bool:
            if command.faults is None:
                return time.monotonic() < deadline
            return sum(len(each.faults) for each in rounds) < command.faults

        while not rounds or goes_on():
            training = Training(folder / f"round-{len(rounds)}", command, nodes.environment)
            each = Attack(command, nodes, training, rng).run(len(rounds))
            each.identical = each.problem is None and training.layers() == undisturbed.layers()
            if each.problem is None and not each.identical:
                each.problem = "the final weights differ"
            rounds.append(each)
            print(
                f"round {each.number}: {len(each.faults)} faults, {each.seconds:.0f} s, "
                f"{each.problem or 'identical'} (--seed {command.seed})",
                flush=True,
            )
            if each.identical:
                shutil.rmtree(training.run_dir)
    return rounds


class Training:
    """A run of the training command, in a process of its own.

    Attributes:
        driver: that process; another one once it was killed and started again.
    """

    def __init__(self, run_dir: Path, command: ChaosCommand, environment: dict[str, str]) -> None:
        self.run_dir = run_dir
        self.epochs = command.epochs
        self.environment = environment
        stages = f"1:{min(3, command.nodes)}"
        self.options = (
            f"--arch=tinycnn --width=20 --batch-size=50 --limit=400 --epochs={command.epochs} "
            f"--precision=fp32 --kernels=conv --cpus-per-stage=1 --elastic={stages} "
            "--max-failures=-1"
        ).split()
        self.log = run_dir.with_suffix(".log")
        self.driver = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        resume = ["--resume"] if (self.run_dir / "config.json").exists() else []
        train = [sys.executable, "-m", "rayff.train", f"--run-dir={self.run_dir}"]
        with self.log.open("a") as log:
            return subprocess.Popen(
                [*train, *self.options, *resume],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def restart(self) -> None:
        """Kill the driver and start it again."""
        self.driver.kill()
        self.driver.wait()
        self.driver = self._start()

    def last_lines(self) -> str:
        """Return the end of what it printed."""
        return "\n".join(self.log.read_text().splitlines()[-15:])

    def checkpoint(self) -> Path | None:
        """Return the folder of the newest checkpoint."""
        return max((self.run_dir / "checkpoints").glob("step-*"), default=None)

    def layers(self) -> dict[str, bytes]:
        """Return the newest checkpoint's layers, byte for byte."""
        newest = self.checkpoint() or self.run_dir
        return {path.name: path.read_bytes() for path in newest.glob("layer-*.safetensors")}

    def is_complete(self) -> bool:
        """Return whether there are metrics of all epochs."""
        path = self.run_dir / METRICS_FILE
        return path.exists() and len(read_metrics(path)) == self.epochs


class Attack:
    """Faults against one training, until it is complete."""

    def __init__(
        self, command: ChaosCommand, nodes: LocalNodes, training: Training, rng: random.Random
    ) -> None:
        self.kinds = command.kinds.split(",")
        self.nodes = nodes
        self.training = training
        self.rng = rng
        self.deck: list[str] = []
        """Kinds of faults to come, each once."""
        self.returns: list[float] = []
        """When nodes come back."""

    def run(self, number: int) -> Round:
        """Kill at random moments until the training has ended."""
        began = time.monotonic()
        each = Round(number=number)
        for wait_s, after_progress in self._moments():
            if not self._wait(wait_s, after_progress):
                break
            each.faults += self._kill()
        code = self.training.driver.wait()
        while len(self.nodes.running) < self.nodes.count:
            self.nodes.add()
        if code or not self.training.is_complete():
            each.problem = f"exit code {code}: {self.training.last_lines()}"
        each.seconds = time.monotonic() - began
        account(self.training.run_dir, each.faults)
        return each

    def _moments(self) -> Iterator[tuple[float, bool]]:
        """Yield how long to wait, and whether only from the next checkpoint on.

        Some faults come while the run still recovers from the one before.
        """
        while True:
            yield self.rng.uniform(0.0, 6.0), True
            if self.rng.random() < 0.4:
                yield self.rng.uniform(0.0, 6.0), False

    def _wait(self, seconds: float, after_progress: bool) -> bool:
        """Wait; return whether the training is still running."""
        checkpoint = self.training.checkpoint()
        began = time.monotonic()
        until = began + seconds
        while self.training.driver.poll() is None:
            now = time.monotonic()
            if after_progress and self.training.checkpoint() == checkpoint:
                until = now + seconds
            if now >= until:
                return True
            if self.returns and now >= self.returns[0]:
                self.returns.pop(0)
                self.nodes.add()
            if now - began > ROUND_TIMEOUT_S:
                self.training.driver.kill()
                return False
            time.sleep(0.02)
        return False

    def _kill(self) -> list[Fault]:
        """Kill what comes next; return the fault, or nothing where there is nothing to kill."""
        self.deck = self.deck or self.rng.sample(self.kinds, len(self.kinds))
        kind, what = self.deck.pop(), ""
        at_s = time.time()
        if kind == "driver":
            self.training.restart()
        elif kind == "node":
            if len(self.nodes.running) == 1:
                return []
            self.nodes.remove(self.rng.randrange(len(self.nodes.running)))
            self.returns.append(time.monotonic() + self.rng.uniform(4.0, 12.0))
        else:
            stages = self.nodes.stages()
            if not stages:
                return []
            pid = self.rng.choice(stages)
            what, at_s = f" {pid}", time.time()
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return []
        return [Fault(kind, kind + what, at_s)]


def account(run_dir: Path, faults: Sequence[Fault]) -> None:
    """Fill in the consequences of each fault, by the run's own events."""
    path = run_dir / EVENTS
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines]
    for fault in faults:
        later = [event for event in events if event["time"] > fault.at_s]
        failure = next((event for event in later if event["event"] == "failure"), None)
        running = next((event for event in later if event["event"] == "running"), None)
        if running is not None:
            fault.recovered_s = running["time"] - fault.at_s
        if failure is None or fault.kind == "driver":
            continue
        if running is None or failure["time"] < running["time"]:
            fault.noticed_s = failure["time"] - fault.at_s
            fault.replayed = failure["step"] - failure["snapshot"]
