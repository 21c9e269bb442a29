"""python -m rayff.bench chaos: trainings whose stages, nodes and driver are killed at random.

Real trainings, one after the other, on a cluster of several raylets on this machine. Every fault
is a SIGKILL:

    stage     a process of a stage, while it computes, sends, copies a snapshot or starts
    node      a raylet with all that runs under it; a new node comes a little later
    driver    the training command itself, which is started again with --resume

A round ends when its training is complete; then every layer's weights and optimizer state are held
against those of the same training undisturbed. What the run says of itself in events.jsonl tells
how soon a fault was noticed and how soon training went on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rayff.bench.outcome import Outcome, at_least_one, check_save, median
from rayff.cli import parse
from rayff.config.errors import RunError, UserError
from rayff.distributed.local_cluster import LocalNodes
from rayff.runs.checkpoint_manager import EVENTS

DESCRIPTION = """\
Kill stages, nodes and the driver of trainings at random, and compare the weights.

Examples:
  rayff bench chaos --minutes 2
  rayff bench chaos --minutes 15 --seed 7 --save bench-chaos.json
  rayff bench chaos --minutes 3 --kinds stage,node

Notes:
- The final weights must equal those of an undisturbed training, bit for bit;
  if so, the exit code is 0, else 1.
- A seed gives the same faults, but not at exactly the same moments.
"""

KINDS = ("stage", "node", "driver")

ROUND_TIMEOUT_S = 900.0


@dataclass(frozen=True, kw_only=True)
class ChaosCommand:
    """The options."""

    minutes: float = 2.0
    """Minutes after which no new training is started."""
    faults: int | None = None
    """Stop after this many faults instead, when the current training is complete."""
    seed: int = 0
    """Seed of what is killed and when."""
    kinds: str = "stage,node,driver"
    """Processes to kill: stage, node and driver, with commas between them."""
    nodes: int = 3
    """Nodes of one CPU each; the training has as many stages, up to three."""
    epochs: int = 8
    """Epochs of each training."""
    save: str | None = None
    """JSON file to write the figures to."""


@dataclass
class Fault:
    """One kill and what came of it; seconds from the kill on."""

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


def main(args: Sequence[str]) -> int:
    """Attack, print, and save where asked."""
    command = parse(ChaosCommand, module="rayff.bench chaos", description=DESCRIPTION, args=args)
    at_least_one(nodes=command.nodes, epochs=command.epochs)
    kinds = tuple(command.kinds.split(","))
    if not set(kinds) <= set(KINDS):
        raise UserError(f"--kinds {command.kinds}: known are {', '.join(KINDS)}")
    check_save(command.save)
    with tempfile.TemporaryDirectory(prefix="rayff-chaos-") as folder:
        rounds = attack(command, kinds, Path(folder))
    outcome = summary(command, rounds)
    outcome.show()
    outcome.save(command.save)
    return 0 if all(each.identical for each in rounds) else 1


def attack(command: ChaosCommand, kinds: Sequence[str], folder: Path) -> list[Round]:
    """Train undisturbed once, then under attack until the time is over."""
    rng = random.Random(command.seed)
    deadline = time.monotonic() + 60 * command.minutes
    rounds: list[Round] = []
    with LocalNodes(command.nodes) as nodes:
        reference = folder / "undisturbed"
        print("training undisturbed, for comparison", flush=True)
        driver = Driver(reference, command, nodes.environment)
        if driver.process.wait(ROUND_TIMEOUT_S):
            raise RunError(f"the undisturbed training failed: {driver.last_words()}")
        wanted = layer_files(reference)
        while not rounds or (
            time.monotonic() < deadline
            if command.faults is None
            else sum(len(each.faults) for each in rounds) < command.faults
        ):
            number = len(rounds)
            run_dir = folder / f"round-{number}"
            each = Attack(command, kinds, nodes, run_dir, rng).run(number)
            each.identical = each.problem is None and layer_files(run_dir) == wanted
            if each.problem is None and not each.identical:
                each.problem = "the final weights differ"
            rounds.append(each)
            print(
                f"round {number}: {len(each.faults)} faults, {each.seconds:.0f} s, "
                f"{'identical' if each.identical else each.problem} (--seed {command.seed})",
                flush=True,
            )
            if each.identical:
                shutil.rmtree(run_dir)
    return rounds


def layer_files(run_dir: Path) -> dict[str, bytes]:
    """Return the newest checkpoint's layers, byte for byte."""
    newest = max((run_dir / "checkpoints").glob("step-*"), default=run_dir)
    return {path.name: path.read_bytes() for path in newest.glob("layer-*.safetensors")}


class Driver:
    """The training command as a process of its own."""

    def __init__(self, run_dir: Path, command: ChaosCommand, environment: dict[str, str]) -> None:
        self.run_dir = run_dir
        resume = ["--resume"] if (run_dir / "config.json").exists() else []
        settings = {
            "arch": "tinycnn",
            "width": 20,
            "batch-size": 50,
            "epochs": command.epochs,
            "limit": 400,
            "precision": "fp32",
            "kernels": "conv",
            "cpus-per-stage": 1,
            "elastic": f"1:{min(3, command.nodes)}",
            "max-failures": -1,
            "run-dir": run_dir,
        }
        flags = [f"--{name}={value}" for name, value in settings.items()]
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        self.log = run_dir.with_suffix(".log")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rayff.train", *flags, *resume],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def last_words(self) -> str:
        """Return the end of what it printed."""
        return "\n".join(self.log.read_text().splitlines()[-15:])


class Attack:
    """Faults against one training, until it is complete."""

    def __init__(
        self,
        command: ChaosCommand,
        kinds: Sequence[str],
        nodes: LocalNodes,
        run_dir: Path,
        rng: random.Random,
    ) -> None:
        self.command = command
        self.kinds = kinds
        self.nodes = nodes
        self.run_dir = run_dir
        self.rng = rng
        self.deck: list[str] = []
        self.returns: list[float] = []
        """When nodes come back."""

    def run(self, number: int) -> Round:
        """Train to the end under fire."""
        began = time.monotonic()
        each = Round(number=number)
        self.driver = Driver(self.run_dir, self.command, self.nodes.environment)
        for wait_s, after_progress in self._moments():
            if not self._wait(wait_s, after_progress):
                break
            fault = self._strike()
            if fault is not None:
                each.faults.append(fault)
        code = self.driver.process.wait()
        while len(self.nodes.running) < self.nodes.count:
            self.nodes.add()
        if code or not self._complete():
            each.problem = f"exit code {code}: {self.driver.last_words()}"
        each.seconds = time.monotonic() - began
        account(self.run_dir, each.faults)
        return each

    def _moments(self) -> Iterator[tuple[float, bool]]:
        """Yield how long to wait, and whether only once training has got on.

        Some faults come while the run is still getting up from the one before.
        """
        while True:
            yield self.rng.uniform(0.0, 6.0), True
            if self.rng.random() < 0.4:
                yield self.rng.uniform(0.0, 6.0), False

    def _wait(self, seconds: float, after_progress: bool) -> bool:
        """Wait; return whether the training is still under way."""
        checkpoints = self._newest()
        began = time.monotonic()
        while self.driver.process.poll() is None:
            now = time.monotonic()
            if after_progress and self._newest() == checkpoints:
                until = now + seconds
            elif not after_progress:
                until = began + seconds
            if now >= until:
                return True
            if self.returns and now >= self.returns[0]:
                self.returns.pop(0)
                self.nodes.add()
            if now - began > ROUND_TIMEOUT_S:
                self.driver.process.kill()
                return False
            time.sleep(0.02)
        return False

    def _newest(self) -> str:
        return max(
            (path.name for path in (self.run_dir / "checkpoints").glob("step-*")), default=""
        )

    def _strike(self) -> Fault | None:
        if not self.deck:
            self.deck = self.rng.sample(self.kinds, len(self.kinds))
        kind = self.deck.pop()
        if kind == "driver":
            self.driver.process.kill()
            self.driver.process.wait()
            at_s = time.time()
            self.driver = Driver(self.run_dir, self.command, self.nodes.environment)
            return Fault(kind, "driver", at_s)
        if kind == "node":
            if len(self.nodes.running) == 1:
                return None
            at_s = time.time()
            self.nodes.remove(self.rng.randrange(len(self.nodes.running)))
            self.returns.append(time.monotonic() + self.rng.uniform(4.0, 12.0))
            return Fault(kind, "node", at_s)
        stages = self.nodes.stages()
        if not stages:
            return None
        pid = self.rng.choice(stages)
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            return None
        return Fault(kind, f"process {pid}", time.time())

    def _complete(self) -> bool:
        path = self.run_dir / "metrics.csv"
        return path.exists() and len(path.read_text().splitlines()) == self.command.epochs + 1


def account(run_dir: Path, faults: Sequence[Fault]) -> None:
    """Find in a run's own events what came of each fault."""
    path = run_dir / EVENTS
    lines = path.read_text().splitlines() if path.exists() else []
    events = [json.loads(line) for line in lines]
    for fault in faults:
        later = [event for event in events if event["time"] > fault.at_s]
        lost = next((event for event in later if event["event"] == "lost"), None)
        running = next((event for event in later if event["event"] == "running"), None)
        if running is not None:
            fault.recovered_s = running["time"] - fault.at_s
        if fault.kind != "driver" and lost and (not running or lost["time"] < running["time"]):
            fault.noticed_s = lost["time"] - fault.at_s
            fault.replayed = lost["step"] - lost["snapshot"]


def summary(command: ChaosCommand, rounds: Sequence[Round]) -> Outcome:
    """Return the table of faults by kind, and whether the bits are the same."""
    outcome = Outcome("chaos", dataclasses.asdict(command))
    table = outcome.table(
        f"{sum(len(each.faults) for each in rounds)} faults in {len(rounds)} trainings, "
        f"seed {command.seed}",
        *("fault", "injected", "noticed: s, median (worst)", "training again: s, median (worst)"),
        "batches replayed, median (most)",
    )
    for kind in KINDS:
        some = [fault for each in rounds for fault in each.faults if fault.kind == kind]
        table.add_row(
            kind,
            str(len(some)),
            _worst([fault.noticed_s for fault in some], 1),
            _worst([fault.recovered_s for fault in some], 1),
            _worst([fault.replayed for fault in some], 0),
        )
    identical = sum(each.identical for each in rounds)
    outcome.notes.append(
        f"final weights and optimizer state: {identical} of {len(rounds)} trainings bit-identical "
        "to the undisturbed one"
    )
    outcome.notes += [
        f"round {each.number} (--seed {command.seed}): {each.problem}"
        for each in rounds
        if not each.identical
    ]
    outcome.figures = {"rounds": [dataclasses.asdict(each) for each in rounds]}
    return outcome


def _worst(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{median(known):.{digits}f} ({max(known):.{digits}f})"
