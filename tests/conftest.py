import os
import random
import re
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.helpers.tiny_task import write_tiny_task

# the same cases in every run, so that a failure is of the change; the time of one means nothing
settings.register_profile("usual", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None)  # new cases, and in tests/fuzz many more
settings.load_profile("usual")

ALLOWED_SKIPS = re.compile("CUDA|AMX|Triton's interpreter")
"""What a skip says that --forbid-skips allows: the last runs in a process of its own."""
Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--forbid-skips",
        action="store_true",
        help="fail what would be skipped, unless it needs a CUDA device or AMX",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return fail_a_skip((yield), item.config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return fail_a_skip((yield), collector.config)


def fail_a_skip(report: Report, config: pytest.Config) -> Report:
    """Turn a skip that is not allowed into a failure."""
    forbidden = config.getoption("--forbid-skips") and not hasattr(report, "wasxfail")
    if forbidden and report.skipped and not ALLOWED_SKIPS.search(str(report.longrepr)):
        report.outcome = "failed"
        report.longrepr = f"--forbid-skips: {report.longrepr}"
    return report


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(pytestconfig: pytest.Config) -> None:
    """Use a cache below pytest's, in actors and programs too, instead of the user's.

    Compiled kernels carry the digest of their source, so the next session uses them again.
    """
    assert pytestconfig.cache is not None
    os.environ["RAYFF_CACHE_DIR"] = str(pytestconfig.cache.mkdir("kernels"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same global random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors need no threads, and bits are compared for one thread count."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """A test that sets the number of threads does not change it for the next."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny task, which no test changes."""
    return write_tiny_task(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server of S3 with a bucket; see tests.helpers.s3."""
    from tests.helpers.s3 import S3  # a second to import, and most tests do without

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = S3()
    yield server
    server.close()
