"""Registries: implementations by name and by import path."""

import math
import platform
import re
from pathlib import Path

import pytest

from rayff.config.errors import UserError
from rayff.config.registry import Registry, is_import_path


@pytest.fixture
def registry() -> Registry[object]:
    made: Registry[object] = Registry("optimizer", "--optimizer")
    made.add("adamw", 1)
    made.add("sgd", "math:sqrt")
    return made


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the user's, on the Python path of this test alone."""
    folder = tmp_path / "user_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "nets.py").write_text("class Outer:\n    inner = 3\n\n_hidden = 4\n")
    (folder / "broken.py").write_text("x = 1\nraise OSError('the disk is gone')\n")
    (folder / "needy.py").write_text("import no_such_dependency\n")
    (folder / "script.py").write_text("raise SystemExit(3)\n")
    (folder / "unfinished.py").write_text("class Outer(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


class TestNames:
    def test_entries_load_by_name_and_keep_their_order(self, registry: Registry[object]):
        assert registry.load("adamw") == 1
        assert registry.load("sgd") is math.sqrt, "imported when it is used"
        assert registry.names == ("adamw", "sgd")
        assert "adamw" in registry
        assert "adam" not in registry

    def test_a_name_is_registered_once(self, registry: Registry[object]):
        with pytest.raises(ValueError, match="the optimizer 'sgd' is registered already"):
            registry.add("sgd", 2)

    @pytest.mark.parametrize(
        ("name", "suggestion"),
        [
            ("adamx", " (did you mean 'adamw'?)"),
            ("lion", ""),
            ("", ""),
            ("not.a.path", ""),
            ("a:b:c", ""),
            ("a-b:c", ""),
        ],
    )
    def test_an_unknown_name_is_answered_with_the_nearest_and_the_known_ones(
        self, registry: Registry[object], name: str, suggestion: str
    ):
        with pytest.raises(UserError) as caught:
            registry.load(name)
        assert str(caught.value) == (
            f"--optimizer: unknown optimizer {name!r}{suggestion}; known are adamw, sgd, and "
            "yours as package.module:object"
        )


@pytest.mark.usefixtures("package")
class TestImportPaths:
    @pytest.mark.parametrize(
        ("path", "found"), [("user_package.nets:Outer.inner", 3), ("user_package.nets:_hidden", 4)]
    )
    def test_an_object_is_imported(self, registry: Registry[object], path: str, found: object):
        assert is_import_path(path)
        assert registry.load(path) == found

    @pytest.mark.parametrize(
        ("path", "cause"),
        [
            ("user_package.net:Outer", "ModuleNotFoundError: No module named 'user_package.net'"),
            ("no_such_package.nets:Outer", "ModuleNotFoundError: No module named 'no_such_pac.*'"),
        ],
    )
    def test_a_module_that_is_not_found_is_named_with_the_cause_and_the_remedy(
        self, registry: Registry[object], path: str, cause: str
    ):
        module, node = path.partition(":")[0], re.escape(platform.node())
        sentence = (
            rf"^--optimizer {path}: the module {module} cannot be imported on {node} \({cause}\)"
            "; .* Python path of every process .* --working-dir or py_modules$"
        )
        with pytest.raises(UserError, match=sentence):
            registry.load(path)

    @pytest.mark.parametrize(
        ("module", "sentence"),
        [
            ("broken", r"\(OSError: the disk is gone\); .* \(.*broken.py, line 2\): correct it"),
            ("needy", r"'no_such_dependency'\); .* \(.*needy.py, line 1\): .* install what it"),
            ("script", r"\(SystemExit: 3\); it is found, and fails by itself \(.*script.py"),
            ("unfinished", r"\(SyntaxError: .*unfinished.py, line 1\)\); .* fails by itself: c"),
            ("nets.py", r"; name the module, user_package.nets, instead of its file$"),
        ],
    )
    def test_another_failure_is_not_put_down_to_the_python_path(
        self, registry: Registry[object], module: str, sentence: str
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            registry.load(f"user_package.{module}:Outer")
        assert "Python path" not in str(caught.value)

    def test_a_module_that_one_of_python_hides_is_told(self, registry: Registry[object]):
        sentence = "json has no 'Outer'; json is a module of Python itself: give yours another"
        with pytest.raises(UserError, match=sentence):
            registry.load("json:Outer")

    @pytest.mark.parametrize(
        ("attribute", "suggestion"),
        [
            ("Otter", r" \(did you mean 'Outer'\?\)"),
            ("Outer.iner", r" \(did you mean 'inner'\?\)"),
        ],
    )
    def test_a_missing_object_is_answered_with_the_nearest(
        self, registry: Registry[object], attribute: str, suggestion: str
    ):
        sentence = f"user_package.nets has no '{attribute}'{suggestion}$"
        with pytest.raises(UserError, match=sentence):
            registry.load(f"user_package.nets:{attribute}")
