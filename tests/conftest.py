import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import settings

# how long a case takes says nothing on a machine that others use too
settings.register_profile("usual", deadline=None)
settings.register_profile("thorough", deadline=None)  # for tests/fuzz: many new cases, not a few
settings.load_profile("usual")


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(pytestconfig: pytest.Config) -> None:
    """Nothing is read from the user's cache or left in it, by actors and programs neither.

    Compiled kernels carry the digest of their source, so the next session takes them as they are.
    """
    assert pytestconfig.cache is not None
    os.environ["RAYFF_CACHE_DIR"] = str(pytestconfig.cache.mkdir("kernels"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same global random numbers, whichever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small tensors want no threads, and bits are compared for one thread count."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """A test that sets the number of threads does not change it for the next."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
