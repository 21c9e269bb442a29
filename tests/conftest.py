import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.helpers.tiny_task import write_tiny_task

# the time of a case means nothing on a shared machine
settings.register_profile("usual", deadline=None)
settings.register_profile("thorough", deadline=None)  # for tests/fuzz: many new cases
settings.load_profile("usual")


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
