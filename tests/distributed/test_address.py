"""Addresses that cannot be joined are refused within seconds, each with its own sentence."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from rayff.config.errors import UserError
from rayff.distributed import address

OWN = {"ray_version": ray.__version__, "python_version": address.platform.python_version()}


@pytest.fixture(scope="module")
def other_program() -> Iterator[str]:
    """The address of something that listens and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("http://head:8265", r"is the address of a dashboard.* RAY_ADDRESS=head:6379"),
        ("https://head/", r"is the address of a dashboard.* RAY_ADDRESS=head:6379"),
        ("ray://head:10001", r"for Ray Client, .* RAY_ADDRESS=head:6379"),
        ("head", r"RAY_ADDRESS=head names no port; .* such as head:6379"),
        ("head:ray", r"RAY_ADDRESS=head:ray names no port"),
        ("127.0.0.1:1", r"127\.0\.0\.1:1 \(RAY_ADDRESS\) did not answer: Connection refused; "),
        ("no.such.host.invalid:6379", r"did not answer: .*[Nn]ame"),
    ],
)
def test_what_is_no_address_of_a_head(value: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        address.check_address(value)


@pytest.mark.slow
def test_something_else_that_listens(other_program: str) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=f"listens at {other_program} .* is not the head of a Ray"):
        address.check_address(other_program)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    ("cluster", "node", "sentence"),
    [
        ({}, "127.0.0.1", None),
        ({"ray_version": "2.1.0"}, "127.0.0.1", "has Ray 2.1.0 and Python .*, and this process"),
        ({"python_version": "3.9.1"}, "127.0.0.1", "has Ray .* and Python 3.9.1, and this"),
        ({}, "192.0.2.77", "no node of the Ray cluster .* has nodes at 192.0.2.77; join it with"),
    ],
)
def test_a_cluster_that_cannot_be_joined_from_here(
    cluster: dict[str, str],
    node: str,
    sentence: str | None,
    other_program: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(address: str) -> Any:
        return {**OWN, **cluster}, [SimpleNamespace(node_manager_address=node)]

    monkeypatch.setattr(address, "_ask_head", answer)
    with ExitStack() as stack:
        if sentence:
            stack.enter_context(pytest.raises(UserError, match=re.compile(sentence)))
        address.check_address(other_program)
