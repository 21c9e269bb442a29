"""The direction of imports, and that Ray is needed by the cluster alone."""

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
    "partition": {"config", "models", "kernels", "learning"},
    "data": {"config", "models", "kernels", "learning"},
    "runs": {"config", "models", "kernels", "learning"},
}
"""What a room may import, beside itself."""
BELOW["engine"] = BELOW["learning"] | {"learning", "partition", "data", "runs"}
BELOW["distributed"] = BELOW["baselines"] = BELOW["console"] = BELOW["engine"] | {"engine"}
for _room in ("tune", "report", "doctor"):
    BELOW[_room] = BELOW["engine"] | {"engine", "distributed", "baselines", "console", "cli"}

WITH_RAY = {"distributed", "tune", "baselines", "doctor", "bench"}
"""The rooms that Ray belongs to."""

BLOCK_RAY = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ImportError("ray is blocked")
sys.meta_path.insert(0, Block())
"""


def room(module: str) -> str:
    """Return the second part of a module's name; the package itself is in no room."""
    return (module.split(".") + [""])[1]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every import of a file, wherever it stands, with its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports by dots"
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


def run_without_ray(code: str, *arguments: str) -> None:
    run(BLOCK_RAY + code, *arguments)


def test_there_is_something_to_look_at():
    assert {room(module) for module in MODULES} >= BELOW.keys()
    assert len(MODULES) > 30


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) in BELOW])
def test_a_room_imports_from_the_rooms_below_it_alone(module: str):
    allowed = BELOW[room(module)] | {room(module)}
    upward = [
        f"{MODULES[module]}:{line} imports {name}"
        for name, line in imports(MODULES[module])
        if name.partition(".")[0] == "rayff" and room(name) not in allowed
    ]
    assert upward == []


def test_the_config_needs_the_standard_library_alone():
    others = {
        name.partition(".")[0]
        for module, path in MODULES.items()
        if room(module) == "config"
        for name, _ in imports(path)
    }
    assert others - {"rayff"} <= sys.stdlib_module_names


def test_ray_is_imported_by_its_rooms_alone():
    with_ray = {
        room(module)
        for module, path in MODULES.items()
        for name, _ in imports(path)
        if name.partition(".")[0] == "ray"
    }
    assert "distributed" in with_ray
    assert with_ray <= WITH_RAY


def test_everything_else_is_imported_where_ray_is_not_installed():
    names = [name for name in MODULES if room(name) not in WITH_RAY]
    if importlib.util.find_spec("triton") is None:  # torch brings it where it is built for GPUs
        names.remove("rayff.kernels.triton_kernels")
    assert "rayff.engine.loop" in names
    run_without_ray("for name in sys.argv[1:]: importlib.import_module(name)", *names)


def test_the_block_does_block():
    with pytest.raises(AssertionError, match="ray is blocked"):
        run_without_ray("import rayff.distributed.placement")


def test_a_trained_network_is_loaded_where_ray_is_not_installed(tmp_path: Path):
    run_without_ray(
        """
import pathlib
import numpy as np, torch
from safetensors.torch import save
import rayff
from rayff.learning.chain import Chain
from rayff.models.zoo import architecture
from rayff.runs.run_directory import RunDirectory

network = architecture("tinycnn", num_classes=2, image_channels=1, width=2)
weights = [layer.weight.detach() for layer in Chain.build(network, seed=1).cwconvs()]
directory = RunDirectory(pathlib.Path(sys.argv[1]))
directory.create(rayff.TrainConfig(width=2))
directory.export_model(
    network,
    {i: np.frombuffer(save({"weight": weight}), np.uint8) for i, weight in enumerate(weights)},
    window=(1, 2),
    class_names=("no", "yes"),
    precision="fp32",
)
model = rayff.load(sys.argv[1])
images = torch.randint(256, (3, 1, 32, 32), dtype=torch.uint8)
assert model(images).shape == (3, 2)
assert all(torch.equal(a.weight, b) for a, b in zip(model.chain.layers, weights))
""",
        str(tmp_path / "run"),
    )


def test_a_stage_learns_without_what_takes_a_second_to_import():
    printed = run(
        """
import sys
import numpy as np, torch
import rayff.distributed.training
from rayff.data.images import ImageSet
from rayff.config.train_config import TrainConfig
from rayff.models.zoo import architecture
from rayff.engine.learner import StageSpec
from rayff.engine.commands import Snapshot, Train
from rayff.engine.stage import local_stage

run = TrainConfig(arch="tinycnn", width=10).resolved({})
network = architecture("tinycnn", num_classes=10, image_channels=1, width=10)
images = ImageSet(images=np.zeros((2, 1, 32, 32), np.uint8), labels=np.zeros(2, np.int64))
stage = local_stage(
    StageSpec(
        architecture=network, is_last=True, recipe=run.recipe({}), seed=0, precision="fp32"
    ),
    torch.device("cpu"),
    {"train": images},
)
stage.handle(Train(epoch=0, batches=(np.arange(2),), step=0, lr=0.1), None)
assert len(stage.handle(Snapshot(epoch=0, batch=1), None)[1].states) == 4
slow = {"torch._dynamo", "torchvision", "sklearn", "pandas", "ray.train", "ray.tune"}
print(*sorted(slow & sys.modules.keys()))
"""
    )
    assert printed.strip() == ""
