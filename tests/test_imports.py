"""The direction of imports, and that torch and Ray are imported only where they are needed."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "rayff"
MODULES = {
    ".".join(("rayff", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

BELOW: dict[str, set[str]] = {
    "config": set(),
    "models": {"config"},
    "kernels": {"config", "models"},
    "learning": {"config", "models", "kernels"},
}
"""The subpackages that each one may import; two at the same height do not import each other."""
for _name in ("partition", "data"):
    BELOW[_name] = {"learning", *BELOW["learning"]}
BELOW["runs"] = {"data", "learning", *BELOW["learning"]}
BELOW["engine"] = {"learning", "partition", "data", "runs", *BELOW["learning"]}
for _name in ("distributed", "console"):
    BELOW[_name] = {"engine", *BELOW["engine"]}
BELOW["baselines"] = {"distributed", *BELOW["distributed"]}
for _name in ("tune", "report", "doctor", "bench"):
    BELOW[_name] = {"baselines", "console", "cli", "trainer", *BELOW["baselines"]}
BELOW["bench"].add("report")

COMMANDS = {
    *("__main__", "cli", "config_file", "evaluate", "export", "plan", "predict", "train"),
    "trainer",
}
"""Modules outside of the subpackages, which may import all of them."""

ROOM_COMMANDS = {"rayff.runs.__main__"}
"""Commands in a subpackage below what they print with; they may import all others too."""

WITH_RAY = {"distributed", "tune", "baselines", "doctor", "bench"}
"""The subpackages that may import Ray."""

BLOCK_RAY = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ImportError("ray is blocked")
sys.meta_path.insert(0, Block())
"""


def subpackage(module: str) -> str:
    """Return the second part of a module's name; that of the package itself is empty."""
    return (module.split(".") + [""])[1]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every import of a file, wherever it stands, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} has a relative import"
            assert node.module is not None
            if node.module == "rayff":  # `from rayff import data`
                yield from ((f"rayff.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


def run(code: str, *arguments: str) -> str:
    """Run a program and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_without_ray(code: str, *arguments: str) -> str:
    return run(BLOCK_RAY + code, *arguments)


def test_every_module_is_known():
    assert {subpackage(module) for module in MODULES} - {""} - COMMANDS == BELOW.keys()


@pytest.mark.parametrize(
    "module",
    [name for name in MODULES if subpackage(name) in BELOW and name not in ROOM_COMMANDS],
)
def test_a_module_imports_the_subpackages_below_it_alone(module: str):
    allowed = BELOW[subpackage(module)] | {subpackage(module)}
    upward = [
        f"{MODULES[module]}:{line} imports {name}"
        for name, line in imports(MODULES[module])
        if name.partition(".")[0] == "rayff" and subpackage(name) not in allowed
    ]
    assert upward == []


def test_the_config_needs_the_standard_library_alone():
    others = {
        name.partition(".")[0]
        for module, path in MODULES.items()
        if subpackage(module) == "config"
        for name, _ in imports(path)
    }
    assert others - {"rayff"} <= sys.stdlib_module_names


def test_ray_is_imported_by_its_subpackages_alone():
    with_ray = {
        subpackage(module)
        for module, path in MODULES.items()
        for name, _ in imports(path)
        if name.partition(".")[0] == "ray"
    }
    assert "distributed" in with_ray
    assert with_ray <= WITH_RAY


def test_the_package_imports_neither_torch_nor_ray():
    heavy = run("import sys, rayff; rayff.Trainer, rayff.TrainConfig(); print(*sys.modules)")
    assert not {"torch", "ray", "numpy"} & {name.partition(".")[0] for name in heavy.split()}


def test_runs_are_listed_without_torch_and_ray():
    heavy = run("import sys, rayff.runs.__main__; print(*sys.modules)")
    assert not {"torch", "ray"} & {name.partition(".")[0] for name in heavy.split()}


def test_all_other_modules_are_imported_without_ray():
    names = [name for name in MODULES if subpackage(name) not in WITH_RAY]
    if importlib.util.find_spec("triton") is None:  # torch depends on it where it has CUDA
        names.remove("rayff.kernels.triton_kernels")
    assert "rayff.engine.loop" in names
    run_without_ray("for name in sys.argv[1:]: importlib.import_module(name)", *names)


def test_the_block_does_block():
    with pytest.raises(AssertionError, match="ray is blocked"):
        run_without_ray("import rayff.distributed.placement")


def test_a_network_is_trained_and_loaded_without_ray(tmp_path: Path):
    printed = run_without_ray(
        """
import torch
from rayff import TrainConfig, Trainer, load_model

config = TrainConfig(width=10, epochs=1, limit=48, run_dir=sys.argv[1], stages=2)
result = Trainer(config, backend="local", quiet=True).fit()
assert result.complete
images = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
print(*load_model(result.run_dir)(images).shape)
""",
        str(tmp_path / "run"),
    )
    assert printed.split() == ["3", "10"]


def test_an_actor_learns_without_modules_that_take_a_second_to_import():
    printed = run(
        """
import sys
import numpy as np, torch
import rayff.distributed.stage_actor
from rayff.config.kernels import Kernels
from rayff.config.resolved import resolve, resolve_recipe
from rayff.config.train_config import TrainConfig
from rayff.data.images import ImageSet
from rayff.engine.commands import Snapshot, Train
from rayff.engine.learner import StageSpec, make_learner
from rayff.engine.stage import Stage
from rayff.models.zoo import architecture

config = TrainConfig(width=10)
network = architecture("tinycnn", num_classes=10, image_channels=1, width=10)
images = ImageSet(images=np.zeros((2, 1, 32, 32), np.uint8), labels=np.zeros(2, np.int64))
resolved = resolve(config, resolve_recipe(config, {}), "fp32", (Kernels(),) * 4)
spec = StageSpec(architecture=network, is_last=True, config=resolved)
cpu = torch.device("cpu")
stage = Stage(spec, cpu, make_learner(spec, cpu), {"train": images})
stage.handle(Train(epoch=0, batches=(np.arange(2),), step=0, lrs=(0.1,)), None)
assert len(stage.handle(Snapshot(epoch=0, batch=1), None)[1].states) == 4
slow = {"torch._dynamo", "torchvision", "sklearn", "pandas", "ray.train", "ray.tune"}
print(*sorted(slow & sys.modules.keys()))
"""
    )
    assert printed.strip() == ""
