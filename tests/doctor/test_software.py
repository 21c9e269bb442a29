"""Packages that do not fit, GPUs that torch cannot use, compilers that are not there."""

import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from rayff.doctor import software
from rayff.kernels import gpu, native


class TestVersions:
    def test_tells_them(self) -> None:
        result = software.versions()
        assert result.state == "ok"
        assert f"torch {metadata.version('torch')}" in result.found

    def test_torchvision_that_wants_another_torch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wants = {"torchvision": [Requirement("torch==1.2.3"), Requirement("numpy<1")]}
        monkeypatch.setattr(software, "requirements", lambda name: wants.get(name, []))
        result = software.versions()
        assert result.state == "fails"
        assert result.found.endswith("torchvision wants torch ==1.2.3")
        assert str(result.remedy).startswith("pip install -U torch torchvision")

    def test_a_local_version_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(software, "requirements", lambda name: [Requirement("torch==2.9.1")])
        monkeypatch.setattr(metadata, "version", lambda name: "2.9.1+cu128")
        assert software.misfits(("torchvision",), ("torch",)) == []

    def test_a_package_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(software, "PACKAGES", ("torch", "no-such-package"))
        result = software.versions()
        assert result.state == "fails"
        assert result.remedy == "pip install no-such-package"

    def test_a_package_that_cannot_be_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(name: str) -> None:
            raise RuntimeError("operator torchvision::nms does not exist")

        monkeypatch.setattr(software.importlib, "import_module", broken)
        result = software.versions()
        assert result.state == "fails"
        assert "torchvision::nms" in result.found

    def test_optional_packages_are_no_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(software, "OPTIONAL", ("pyarrow", "no_such_package"))
        assert software.extras().found == (
            "pyarrow here; no_such_package not, and only wanted by options"
        )


class TestGpus:
    @pytest.fixture(autouse=True)
    def nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(software, "NVIDIA_DEVICE", tmp_path / "none")
        monkeypatch.setattr(software, "nvidia_driver", lambda: None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def test_none(self) -> None:
        assert software.gpus().state == "ok"

    def test_torch_for_cpus_beside_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(software, "nvidia_driver", lambda: "550.54")
        monkeypatch.setattr(torch.version, "cuda", None)
        result = software.gpus()
        assert result.state == "fails"
        assert "built for CPUs" in result.found

    def test_a_driver_that_is_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(software, "nvidia_driver", lambda: "450.1")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        result = software.gpus()
        assert result.state == "fails"
        assert "CUDA 13.0 cannot use the GPU with driver 450.1" in result.found

    def test_hidden_ones_are_no_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(software, "nvidia_driver", lambda: "550.54")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert software.gpus().state == "note"

    def test_the_driver_is_what_the_program_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.undo()
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\nprintf '550.54\\n550.54\\n'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert software.nvidia_driver() == "550.54"
        program.write_text("#!/bin/sh\necho no device; exit 9\n")
        assert software.nvidia_driver() is None

    def test_one_that_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        device = SimpleNamespace(name="H100", total_memory=80 * 2**30)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
        result = software.gpus()
        assert result.state == "ok"
        assert result.found.startswith("H100 (80 GiB), H100 (80 GiB);")

    def test_a_gpu_without_its_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*arguments: object) -> None:
            raise RuntimeError("Failed to find C compiler")

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(gpu, "pointwise", broken)
        monkeypatch.setattr(torch, "zeros", lambda *shape, device: None)
        gpu.missing.cache_clear()
        result = software.triton()
        gpu.missing.cache_clear()
        assert result.state == "slow"
        assert "Failed to find C compiler" in result.found


class TestKernels:
    @pytest.fixture(autouse=True)
    def fresh(self) -> Iterator[None]:
        native.library.cache_clear()
        native.missing.cache_clear()
        yield
        native.library.cache_clear()
        native.missing.cache_clear()

    def test_no_compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        result = software.kernels()
        assert result.state == "slow"
        assert result.found.startswith("no C++ compiler is there")
        assert "g++" in str(result.remedy)

    def test_a_compiler_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        compiler = tmp_path / "c++"
        compiler.write_text("#!/bin/sh\necho out of cheese >&2; exit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "cache"))
        result = software.kernels()
        assert result.state == "slow"
        assert "out of cheese" in result.found

    def test_one_that_works_compiles_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A stand-in that copies a library that is there: the real one takes seconds."""
        real = native.library_file(native.find_compiler())
        if not real.exists():
            assert native.missing() is None
        compiler = tmp_path / "c++"
        compiler.write_text(f'#!/bin/sh\nfor last; do :; done\nexec {CP} "{real}" "$last"\n')
        compiler.chmod(0o755)
        self.fresh_caches()
        monkeypatch.setenv("CXX", str(compiler))
        monkeypatch.setenv("RAYFF_CACHE_DIR", str(tmp_path / "cache"))
        assert software.kernels().found.startswith("compiled in ")
        self.fresh_caches()
        assert software.kernels().found.startswith("cached, ")

    @staticmethod
    def fresh_caches() -> None:
        native.library.cache_clear()
        native.missing.cache_clear()


CP = next(path for path in ("/bin/cp", "/usr/bin/cp") if os.path.exists(path))


def test_precision_is_told_with_its_reason() -> None:
    assert software.precision().state == "ok"
    assert software.precision().found[:4] in ("fp32", "bf16")
