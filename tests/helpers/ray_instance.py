"""A Ray instance of the tests' own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from rayff.distributed.session import patiently


@contextmanager
def local_ray(num_cpus: int = 2, **options: Any) -> Iterator[None]:
    """Be a Ray instance of this process, quiet and without a dashboard."""
    usual = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    patiently(lambda: ray.init("local", num_cpus=num_cpus, **usual, **options))
    try:
        yield
    finally:
        ray.shutdown()
