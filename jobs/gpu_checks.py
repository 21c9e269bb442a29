"""The checks and trainings that need a GPU, one after the other, those of most worth first.

    python3 jobs/gpu_checks.py --data DIR --out OUT --minutes 9
    python3 jobs/gpu_checks.py --data DIR --out OUT --only linear,similarity
    python3 jobs/gpu_checks.py --data DIR --out OUT --only linear --try-on-cpu

Everything runs in this process or in programs that it starts, without Ray. Each result is a line
of OUT/results.jsonl; what stands there already is not run again, so that a check that did not fit
into the time goes on in the next call. A training is begun only if its usual time is left.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STRONG = {"augment": "crop,flip,cutout"}
TRIAL = {"device": "cpu", "limit": 256, "epochs": 1, "width": 20}
"""What `--try-on-cpu` changes: it shows that the trainings run, and no figure."""
PAPER = [
    *(("vgg", "cifar10"), ("resnet", "mnist"), ("vgg", "mnist"), ("tinycnn", "mnist")),
    *(("resnet", "fmnist"), ("vgg", "fmnist"), ("tinycnn", "fmnist")),
]
"""Cells of the paper's table 1, 150 epochs each with the default recipe."""


Run = Callable[[argparse.Namespace], Mapping[str, Any]]
"""Takes the options of the command line and returns what was found."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Check:
    """One check: what it runs, and the seconds that it takes on an H200 at most."""

    seconds: float
    run: Run


def program(*words: str) -> Run:
    """Return a check that runs a Python program and keeps the end of its output."""

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
        return {"exit_code": done.returncode, "output": (done.stdout + done.stderr)[-4000:]}

    return run


def training(**options: Any) -> Run:
    """Return a check that trains and keeps the last epoch's figures."""

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        import torch

        from rayff import TrainConfig, Trainer
        from rayff.bench.workload import completed

        usual = {"task": "cifar10", "logger": "none", "device": "cuda", "checkpoint_every": 1000}
        trial = TRIAL if given.try_on_cpu else {}
        config = TrainConfig(
            **{**usual, **options, **trial},
            data_dir=str(given.data),
            run_dir=str(given.out / "runs" / f"{time.time():.0f}"),
        )
        result = completed(Trainer(config, backend="local", quiet=True).fit())
        last = result.metrics[-1]
        return {
            "device": "cpu" if trial else torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "options": options,
            "last": {
                key: value
                for key, value in dataclasses.asdict(last).items()
                if isinstance(value, (int, float))
            },
            "valid_by_epoch": [round(record.valid_accuracy, 2) for record in result.metrics],
        }

    return run


CHECKS: dict[str, Check] = {
    "tests": Check(
        seconds=150,
        run=program("-m", "pytest", "-q", "-m", "gpu", "tests/kernels", "tests/learning"),
    ),
    "losses": Check(seconds=60, run=program("-m", "rayff.bench", "losses", "--arch", "resnet")),
    "step": Check(seconds=90, run=program("-m", "rayff.bench", "step", "--arch", "resnet")),
    "linear": Check(seconds=300, run=training(arch="resnet", loss="linear", epochs=150, **STRONG)),
    "similarity": Check(
        seconds=330, run=training(arch="resnet", loss="linear_similarity", epochs=150, **STRONG)
    ),
    "wide": Check(
        seconds=500,
        run=training(arch="resnet", loss="linear_similarity", width=200, epochs=100, **STRONG),
    ),
    "predsim": Check(
        seconds=480,
        run=training(arch="vgg8b", loss="predsim", epochs=100, augment="crop,flip"),
    ),
    "bp": Check(seconds=420, run=training(arch="resnet", method="bp", epochs=50, **STRONG)),
    **{
        f"paper-{arch}-{task}": Check(seconds=330, run=training(arch=arch, task=task, epochs=150))
        for arch, task in PAPER
    },
}


def main() -> int:
    """Run what is owed and fits into the time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder that holds cifar10/ ...")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="minutes to use at most")
    parser.add_argument("--only", help="names of checks with commas between them")
    parser.add_argument("--try-on-cpu", action="store_true", help="small trainings, no GPU")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"no check is called {', '.join(unknown)}: known are {', '.join(CHECKS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    done = {found["check"] for found in map(json.loads, lines) if "error" not in found}
    end = time.monotonic() + 60 * options.minutes
    for name in names:
        check = CHECKS[name]
        if name in done or time.monotonic() + check.seconds > end:
            continue
        start = time.monotonic()
        try:
            found = dict(check.run(options))
        except Exception as error:  # the others are still worth their time
            found = {"error": f"{type(error).__name__}: {error}"}
        found = {"check": name, "seconds": round(time.monotonic() - start, 1), **found}
        with results.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(json.dumps({k: v for k, v in found.items() if k != "valid_by_epoch"}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
