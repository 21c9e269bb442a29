"""Stop requests by real signals."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import pytest

from rayff.engine.stop import SIGNALS, StopRequest


def unexpected(signum: int, frame: object) -> None:
    raise AssertionError(f"signal {signum} came through")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[signal.Signals, object]]:
    """Install handlers that no signal of a test reaches, and restore those before."""
    before = {number: signal.signal(number, unexpected) for number in SIGNALS}
    yield dict.fromkeys(SIGNALS, unexpected)
    for number, handler in before.items():
        signal.signal(number, handler)


def current() -> dict[signal.Signals, object]:
    return {number: signal.getsignal(number) for number in SIGNALS}


class TestASignal:
    @pytest.mark.parametrize("number", SIGNALS)
    def test_the_first_only_sets(self, number: signal.Signals) -> None:
        names: list[str] = []
        with StopRequest(names.append) as stop:
            assert not stop.requested
            assert stop.signum is None
            os.kill(os.getpid(), number)
            assert stop.requested
            assert stop.signum == number
        assert stop.requested
        assert names == [number.name]

    @pytest.mark.parametrize("first", SIGNALS)
    @pytest.mark.parametrize("second", SIGNALS)
    def test_the_second_interrupts(
        self,
        first: signal.Signals,
        second: signal.Signals,
        handlers: dict[signal.Signals, object],
    ) -> None:
        names: list[str] = []
        stop = StopRequest(names.append)

        def both() -> None:
            with stop:
                os.kill(os.getpid(), first)
                os.kill(os.getpid(), second)

        with pytest.raises(KeyboardInterrupt):
            both()
        assert stop.signum == first
        assert names == [first.name]
        assert current() == handlers


class TestTheHandlers:
    def test_are_put_back_after_an_error(self, handlers: dict[signal.Signals, object]) -> None:
        def fail() -> None:
            with StopRequest():
                assert all(now is not handlers[number] for number, now in current().items())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert current() == handlers

    def test_are_put_back_where_they_were_the_systems_own(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with StopRequest():
            pass
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN

    def test_leave_a_hangup_ignored_as_under_nohup(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    def test_outside_the_main_thread_nothing_happens(
        self, handlers: dict[signal.Signals, object]
    ) -> None:
        seen: list[object] = []

        def run() -> None:
            with StopRequest() as stop:
                seen.append(current())
                seen.append(stop.requested)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert seen == [handlers, False]
        assert current() == handlers


@pytest.mark.parametrize("number", SIGNALS)
def test_a_process_ends_as_it_likes_after_one_signal_and_at_once_after_two(
    number: signal.Signals,
) -> None:
    script = textwrap.dedent(
        """
        import os, time
        from rayff.engine.stop import StopRequest

        def say(line):  # in one write, so that the lines of two threads do not mix
            os.write(1, line.encode() + b"\\n")

        with StopRequest(say) as stop:
            say("ready")
            while not stop.requested:
                time.sleep(0.01)
            say("leaving")
            time.sleep(60)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        said = {process.stdout.readline(), process.stdout.readline()}
        assert said == {f"{number.name}\n", "leaving\n"}, "a thread announces, so in any order"
        process.send_signal(number)
        assert "KeyboardInterrupt" in process.stderr.read()
        assert process.wait(timeout=30) != 0
