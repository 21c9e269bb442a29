"""Packages that do not fit and compilers that are missing."""

from importlib import metadata

import pytest
import torch

from rayff.doctor import software
from rayff.kernels import gpu, native


class TestVersions:
    def test_reports_them(self) -> None:
        result = software.versions()
        assert result.state == "ok"
        assert f"torch {metadata.version('torch')}" in result.text

    @pytest.mark.parametrize(
        ("requirement", "unmet"),
        [
            ("torch==1.2.3", "torchvision needs torch==1.2.3, installed is 2.9.1+cu128"),
            ("torch==2.9.1", None),  # a local version fits
            ("no-such-package>=3", "torchvision needs no-such-package>=3, installed is none"),
            ("no-such-package; extra == 'gdown'", None),
        ],
    )
    def test_requirement(
        self, requirement: str, unmet: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        installed = {"torch": "2.9.1+cu128"}

        def version(name: str) -> str:
            if name not in installed:
                raise metadata.PackageNotFoundError(name)
            return installed[name]

        monkeypatch.setattr(metadata, "requires", lambda package: [requirement])
        monkeypatch.setattr(metadata, "version", version)
        assert software.unmet_requirements("torchvision") == ([unmet] if unmet else [])

    def test_unmet_requirement_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metadata, "requires", lambda package: ["torch==1.2.3"])
        result = software.versions()
        assert result.state == "fail"
        assert "torchvision needs torch==1.2.3" in result.text
        assert "pip install" in str(result.remedy)

    def test_package_that_cannot_be_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(name: str) -> None:
            raise RuntimeError("operator torchvision::nms does not exist")

        monkeypatch.setattr(software.importlib, "import_module", refuse)
        result = software.versions()
        assert result.state == "fail"
        assert "torchvision::nms" in result.text


def test_missing_optional_package_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "OPTIONAL_PACKAGES", ("pyarrow", "no_such_package"))
    result = software.optional_packages()
    assert (result.state, result.remedy) == ("note", "pip install no_such_package")


class TestKernels:
    def test_usable(self) -> None:
        assert software.cpp_kernels().text.startswith("ready after ")

    def test_no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "missing", lambda: "no C++ compiler")
        result = software.cpp_kernels()
        assert (result.state, result.text[-15:]) == ("slow", "no C++ compiler")

    def test_triton_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(gpu, "missing", lambda: "no C compiler")
        result = software.triton_kernels()
        assert result is not None
        assert (result.state, result.text[-13:]) == ("slow", "no C compiler")

    def test_triton_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert software.triton_kernels() is None
