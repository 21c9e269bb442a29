"""rayff export: files that other programs read, compared with the model."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

import rayff.engine.export
from rayff import load_model
from rayff.config.errors import UserError
from rayff.data.images import read_image
from rayff.engine.export import FORMATS, Export, export
from rayff.engine.prediction import image_format
from rayff.export import main
from rayff.learning.readout import Temperatures
from rayff.models.zoo import architecture
from tests.docs.pages import examples
from tests.helpers.colour_run import CLASSES, fusion_of_layer, write_run, write_task
from tests.helpers.modules import HERE
from tests.runs import models
from tests.runs.checkpoints import NETWORK

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.load. is deprecated:FutureWarning")

Network = Callable[[Tensor], Any]
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    task = write_task(folder / "colours")
    write_run(
        *(folder / "run", task, (0, 1)),
        temperatures=Temperatures(window=(0.5, 4.0), last=0.1),
        fusion=fusion_of_layer(2, factor=8.0),
    )
    return folder


def opened(path: Path) -> tuple[Network, dict[str, Any]]:
    """Load a file as a program without rayff does: what it computes, and its rayff.json."""
    texts: dict[str, Any] = {"rayff.json": ""}
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map["rayff.json"]
        return lambda x: session.run(None, {"images": x.numpy()})[0], json.loads(text)
    if path.suffix == ".pt2":
        program = torch.export.load(path, extra_files=texts)
        return program.module(), json.loads(texts["rayff.json"])
    return torch.jit.load(path, _extra_files=texts), json.loads(texts["rayff.json"])


def check(path: Path, run: Path, readout: str = "window") -> None:
    """Compare a file with the run's model on images that the export has not seen."""
    network, _ = opened(path)
    model = load_model(run)
    model.readout = readout  # type: ignore[assignment]
    for batch in (1, 2, 7, 33):
        images = torch.randint(256, (batch, *model.architecture.image_shape), dtype=torch.uint8)
        found = np.asarray(network(images))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, model.probabilities(images), atol=1e-5)


@pytest.fixture(scope="module")
def exported(folder: Path) -> dict[str, Export]:
    return {name: export(folder / "run", name) for name in FORMATS}


@pytest.mark.parametrize(
    ("name", "file"), [("onnx", "model.onnx"), ("pt2", "model.pt2"), ("torchscript", "model.pt")]
)
def test_a_file_gives_the_probabilities_of_the_model_for_batches_of_any_size(
    folder: Path, exported: dict[str, Export], name: str, file: str
) -> None:
    found = exported[name]
    assert found.path == folder / "run" / file
    assert found.size == found.path.stat().st_size
    assert found.images == "7 test images of the run's task"
    assert 0 <= found.difference < 1e-5
    check(found.path, folder / "run")
    _, about = opened(found.path)
    assert about == {
        "rayff_version": rayff.__version__,
        "architecture": "tinycnn",
        "class_names": [*CLASSES],
        "input": {"name": "images", "dtype": "uint8", "shape": ["batch", 3, 32, 32]},
        "preprocessing": {
            "mode": "RGB",
            "size": 32,
            "resize": "crop",
            "filter": "bilinear",
            "normalisation": "in the file",
        },
        "output": {"name": "probabilities", "dtype": "float32", "shape": ["batch", 3]},
        "readout": "window",
        "window": [0, 1],
        "temperature": 4.0,
        "calibrated": True,
    }


def test_the_page_uses_files_and_model_as_it_says(
    folder: Path, exported: dict[str, Export], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its examples, one after the other, on a photo that is no square."""
    for found in exported.values():
        (tmp_path / found.path.name).symlink_to(found.path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(folder / "run")
    noise = np.random.default_rng(0).integers(256, size=(50, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    model = load_model(folder / "run")
    image = read_image(tmp_path / "photo.png", image_format(model))
    expected = model.probabilities(torch.tensor(image)[None])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in examples():
        if example.page == "export.md":
            names.pop("probabilities", None)
            exec(example.code, names)
            if "probabilities" in names:
                np.testing.assert_allclose(names["probabilities"], expected, atol=1e-5)
    assert names["features"].shape == (2, 12, 8, 8)
    assert names["logits"].shape == (4, 2, 3)


def test_the_command_says_what_it_wrote_and_how_it_was_checked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = folder / "run", tmp_path / "network.pt"
    assert main([str(run), "--format=torchscript", f"--output={file}"]) == 0
    size = f"{file.stat().st_size / 1000:.1f} kB"
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: {size}",
        "images uint8 (batch, 3, 32, 32) -> probabilities (batch, 3) of the readout window "
        "(layers 0-1)",
        "checked on 7 test images of the run's task in batches of 1, 2 and 7: probabilities "
        "differ by up to 0 (0.001 is allowed)",
    ]


@pytest.mark.parametrize(("readout", "temperature"), [("last", 0.1), ("fusion", 1.0)])
def test_other_readouts(folder: Path, tmp_path: Path, readout: str, temperature: float) -> None:
    file = tmp_path / "new" / "network"
    flags = ["--format=torchscript", f"--readout={readout}", f"--output={file}"]
    assert main([str(folder / "run"), *flags]) == 0
    check(file, folder / "run", readout)
    _, about = opened(file)
    assert (about["readout"], about["temperature"]) == (
        readout,
        {"last": 0.1, "fusion": 1}[readout],
    )


class TestNetworks:
    """With random images, as there is no data set."""

    def run_of(self, folder: Path, **model: Any) -> Path:
        network = architecture("resnet", num_classes=4, image_channels=1, width=4)
        layers = models.weights(network=network)
        return models.write_run(folder / "run", layers=layers, architecture=network, **model)

    @pytest.mark.parametrize("name", [slow("onnx"), "pt2", "torchscript"])
    def test_with_shortcuts_in_float32_where_the_run_was_in_bfloat16(
        self, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = self.run_of(tmp_path, sip_window=(1, 16), precision="bf16")
        assert main([str(run), f"--format={name}", f"--output={tmp_path / name}.{name}"]) == 0
        *_, checked, no_images, precision, uncalibrated = capsys.readouterr().out.splitlines()
        assert checked.startswith("checked on 10 random images in batches of 1, 2 and 7")
        assert no_images.startswith("note: images of the run's task cannot be read here: ")
        assert precision.startswith("note: the run computed in bfloat16, the file computes in fl")
        assert uncalibrated.startswith("note: the model has no temperatures")
        network, about = opened(tmp_path / f"{name}.{name}")
        assert about["calibrated"] is False

    @pytest.mark.parametrize("name", [slow("onnx"), slow("pt2"), "torchscript"])
    def test_of_modules_of_every_kind(self, tmp_path: Path, name: str) -> None:
        network = architecture(f"{HERE}:every_kind", num_classes=4, image_channels=3)
        run = models.write_modules(tmp_path / "run", network)
        output = tmp_path / FORMATS[name].file_name  # type: ignore[index]
        assert main([str(run), f"--format={name}", "--readout=last", f"--output={output}"]) == 0
        check(output, run, "last")

    def test_of_backpropagation(self, tmp_path: Path) -> None:
        head = {
            "head.weight": torch.randn(4, NETWORK[-1].out_channels),
            "head.bias": torch.ones(4),
        }
        run = models.write_run(
            tmp_path / "run", heads=[{}, {}, {}, head], method="bp", sip_window=(0, 0)
        )
        assert main([str(run), "--format=torchscript"]) == 0
        check(run / "model.pt", run)

    def test_layers_and_heads_that_the_readout_does_not_need_are_left_out(
        self, tmp_path: Path
    ) -> None:
        sizes = []
        for last in (2, 16):
            run = self.run_of(tmp_path / str(last), sip_window=(1, last))
            assert main([str(run), "--format=torchscript"]) == 0
            network, _ = opened(run / "model.pt")
            sizes.append(sum(p.numel() for p in network.parameters()))  # type: ignore[attr-defined]
            check(run / "model.pt", run)
        whole = load_model(run).architecture
        assert sizes == [sum(layer.num_weights for layer in whole[:n].layers) for n in (3, 17)]


class TestMistakes:
    def test_a_file_that_is_there_is_kept(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        flags = ["--format=torchscript", f"--output={tmp_path / 'file'}"]
        with pytest.raises(UserError, match=r"file is there already: replace it with --overwrite"):
            main([str(folder / "run"), *flags])
        assert (tmp_path / "file").read_text() == "mine"
        assert main([str(folder / "run"), *flags, "--overwrite"]) == 0
        check(tmp_path / "file", folder / "run")

    @pytest.mark.parametrize(
        ("flags", "sentence"),
        [
            ("nowhere", "there is no run directory nowhere"),
            ("RUN --readout=windw", "--readout must be one of window, last, fusion, not 'windw'"),
            ("RUN --output=x.onnx", "x.onnx is .*: use --format onnx, or end it in .pt$"),
            ("RUN --format=jit", "--format must be one of onnx, pt2, torchscript, not 'jit'"),
            ("RUN --output=FOLDER", "--output .* is a folder: name a file"),
            ("RUN --output=FOLDER/colours/test.parquet/x", "cannot be written: .*--output"),
            ("RUN --output=FOLDER/x --data-dir=nowhere", "--data-dir"),
            ("PLAIN --readout=fusion", "this model has no readout fusion"),
            ("EMPTY", "holds no trained model yet"),
        ],
    )
    def test_is_one_sentence(
        self, folder: Path, flags: str, sentence: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if not (folder / "plain").exists():
            write_run(folder / "plain", folder / "colours")
            write_run(folder / "empty", folder / "colours")
            (folder / "empty" / "model.safetensors").unlink()
        for word, path in (("RUN", "run"), ("PLAIN", "plain"), ("EMPTY", "empty"), ("FOLDER", "")):
            flags = flags.replace(word, str(folder / path))
        args = [*flags.split(), *([] if "--format" in flags else ["--format=torchscript"])]
        with pytest.raises(UserError, match=sentence):
            main(args)
        assert capsys.readouterr().out == ""

    def test_a_package_that_is_missing(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            rayff.engine.export, "find_spec", lambda name: None if "script" in name else name
        )
        with pytest.raises(UserError, match="onnx needs onnxscript: pip install onnxscript$"):
            main([str(folder / "run")])

    @pytest.mark.parametrize("name", ["onnx", "pt2", "torchscript"])
    def test_modules_with_a_constant_batch_size(self, tmp_path: Path, name: str) -> None:
        network = architecture(f"{HERE}:constant_batch", num_classes=4, image_channels=3)
        run = models.write_modules(tmp_path / "run", network)
        before = sorted(run.iterdir())
        with pytest.raises(UserError, match=f"--format {name}: .*:constant_batch was not expor"):
            main([str(run), f"--format={name}", "--readout=last"])
        assert sorted(run.iterdir()) == before

    def test_a_file_that_computes_something_else(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Here of a layer whose weights change after the model was asked."""
        drop = rayff.engine.export._drop_unused

        def change(module: torch.nn.Module, images: Tensor) -> None:
            drop(module, images)
            with torch.no_grad():
                next(module.parameters()).mul_(0.5)

        monkeypatch.setattr(rayff.engine.export, "_drop_unused", change)
        file = tmp_path / "file"
        with pytest.raises(UserError, match=r"differ from the model's by up to 0\.0\d, and 0.001"):
            main([str(folder / "run"), "--format=torchscript", f"--output={file}"])
        assert not file.exists()
