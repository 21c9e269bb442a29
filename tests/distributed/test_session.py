"""What is said where Ray cannot start on this machine: which folder is meant, and the remedy."""

import errno
import inspect
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import ray
import ray._private.node

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


def test_a_local_instance_that_starts_too_slowly_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is left of the first one is killed."""
    begun: list[subprocess.Popen[bytes]] = []

    def init(*, _temp_dir: str, **options: object) -> None:
        if begun:
            assert begun[0].wait(10) == -signal.SIGKILL
            raise InterruptedError("the second start")
        begun.append(
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", _temp_dir])
        )
        raise Exception(f"The current node {session.TIMED_OUT}. This could happen because")

    assert session.TIMED_OUT in inspect.getsource(ray._private.node)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with refused("a local Ray instance did not start: the second start"), ray_session():
        pass


@pytest.mark.parametrize("when", ["while Ray starts", "later"])
def test_sigterm_ends_the_process_with_its_code_whatever_handlers_ray_sets(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a closed terminal reaches this process alone, not those of Ray; all is put back."""

    def init(**options: object) -> None:
        assert signal.SIGHUP in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(signum))
        if when == "while Ray starts":
            os.kill(os.getpid(), signal.SIGTERM)

    def run() -> None:
        with ray_session():
            assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
            with suppress(SystemExit):
                os.kill(os.getpid(), signal.SIGTERM)
            sys.exit(1)  # as a call of Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(session, "parts_of_ray", list)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_the_death_of_the_process_with_the_last_word_is_no_error() -> None:
    """Whoever stops a job may end it first."""
    with session._helper() as process:
        process.kill()
        process.wait()
        session.Session(process).tell(node=None)
    assert process.returncode < 0
