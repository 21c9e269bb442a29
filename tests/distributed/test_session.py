"""What is said where Ray cannot start on this machine: which folder is meant, and the remedy."""

import errno
from pathlib import Path

import pytest
import ray

from rayff.distributed import session
from rayff.distributed.session import ray_session
from tests.helpers.mistakes import refused

SOCKET = "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /x/plasma"


def denied(path: Path) -> OSError:
    return PermissionError(errno.EACCES, "Permission denied", str(path))


@pytest.mark.parametrize("address", ["", "auto"])
@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("Could not determine home directory."), "this user has none: set HOME to"),
        (denied(Path("/root/.ray")), "cannot write /root/.ray: set HOME to a folder"),
        (OSError(SOCKET), "BASE would have names of more than 107 characters: set RAY_TMPDIR"),
        (
            denied(Path("BASE/ray/session_1")),
            "cannot write BASE/ray, which belongs to .*RAY_TMPDIR",
        ),
    ],
    ids=["no home", "unwritable home", "long folder", "another user's folder"],
)
def test_a_folder_is_named_with_its_remedy(
    address: str,
    error: Exception,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "ray").mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", address)
    if isinstance(error, OSError) and error.filename:
        error = denied(Path(error.filename.replace("BASE", str(tmp_path))))

    def init(**options: object) -> None:
        raise error

    monkeypatch.setattr(session, "check_address", lambda address: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with refused(sentence.replace("BASE", str(tmp_path))) as caught, ray_session():
        pass
    assert "RAY_ADDRESS" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("no more processes\nat all"), "no more processes"),
        (Exception("The current node timed out during startup."), "The current node timed out"),
        (Exception(), "Exception"),
    ],
    ids=["no processes", "too slow", "no words"],
)
def test_another_failure_of_a_local_instance_names_no_address(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: object) -> None:
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with refused(f"a local Ray instance did not start: {said}.*; rayff doctor checks"):
        with ray_session():
            pass


def test_the_death_of_the_process_with_the_last_word_is_no_error() -> None:
    """Whoever stops a job may end it first."""
    with session._helper() as process:
        process.kill()
        process.wait()
        session.Session(process).tell(node=None)
    assert process.returncode < 0
