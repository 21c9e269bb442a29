"""Profiles of this cluster's devices: layers timed on actors, object store, calls, all-reduce."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from rayff.config.activity import activity
from rayff.config.errors import UserError
from rayff.config.train_config import TrainConfig
from rayff.distributed.actor_group import Capabilities
from rayff.distributed.all_reduce import time_all_reduce
from rayff.distributed.failures import wait_for
from rayff.distributed.placement import capacity, nodes
from rayff.distributed.planner import (
    all_reduce_backend,
    ask_capabilities,
    autotune_on,
    timing_actors,
)
from rayff.distributed.session import ray_session
from rayff.distributed.stage_actor import Profile
from rayff.engine.preparation import assemble_without_data
from rayff.engine.resolution import resolve_run
from rayff.engine.run import Run
from rayff.partition.device_profile import (
    DeviceProfile,
    LinkRate,
    RayTimes,
    SumRate,
    TimedLayer,
    Timing,
    feature_bytes,
    merged,
    profile_json,
    read_profile_file,
)
from rayff.partition.layer_costs import LayerTime
from rayff.runs.files import write_atomically

_CALLS = 200
_NETWORK = LinkRate(bytes_per_s=1e9, latency_s=1e-3, source="assumed")
"""Between nodes, of which one alone knows nothing."""


def measure_profile(config: TrainConfig, command: str) -> DeviceProfile:
    """Return a profile of the devices of this cluster, with a network's layers.

    The layers are timed with a whole batch and with half of one, by one actor alone and by all of
    them at once. The actors are those that a run would have.

    Args:
        config: of the run.
        command: that measures, for the file.

    Raises:
        UserError: as in training.
    """
    whole = assemble_without_data(config)
    sizes = dict.fromkeys((whole.recipe.batch_size, max(1, whole.recipe.batch_size // 2)))
    with ray_session(), timing_actors(config, len(whole.architecture)) as there:
        actors, resources = there.actors, there.resources
        found = ask_capabilities(whole, actors)
        common = Capabilities.common(found)
        runs = [
            resolve_run(
                prepared := assemble_without_data(dataclasses.replace(config, batch_size=size)),
                common.precision,
                common.device_class,
                lambda precision: autotune_on(actors[0], prepared, precision),  # noqa: B023
            )
            for size in sizes
        ]
        counts = dict.fromkeys((1, len(actors)))
        with activity("timing the layers alone and at once"):
            profiles = {(run, n): _time(run, actors[:n]) for n in counts for run in runs}
        message_s, call_s = _time_calls(actors)
        backend = all_reduce_backend(resources)
        sums = time_all_reduce(actors[:2], backend) if len(actors) > 1 else None
        per_node = max(capacity([node], resources) for node in nodes())
    byte_s = median(each.seconds_per_byte for many in profiles.values() for each in many)
    store = "measured: Ray's object store"
    return DeviceProfile(
        format=1,
        hardware=found[0].name,
        date=time.strftime("%Y-%m-%d"),
        torch=torch.__version__,
        precision=runs[0].resolved.precision,
        threads=resources.threads,
        command=command,
        devices_per_node=max(1, per_node),
        node=LinkRate(bytes_per_s=1 / byte_s, latency_s=message_s, source=store),
        network=_NETWORK,
        ray=RayTimes(
            copy_bytes_per_s=1 / byte_s, message_s=message_s, call_s=call_s, source="measured"
        ),
        node_all_reduce=None
        if sums is None
        else SumRate(
            bytes_per_s=1 / max(sums.byte_s, 1e-15),
            call_s=sums.call_s,
            source=f"measured: {backend}",
        ),
        roofline=None,
        timings=tuple(_timing(run, n, many) for (run, n), many in profiles.items()),
    )


def _time(run: Run, actors: Sequence[ActorHandle[Any]]) -> list[Profile]:
    """Let actors time the layers at once."""
    arguments = run.resolved, run.architecture, len(actors) - 1, True
    calls = [actor.profile.remote(*arguments) for actor in actors]
    return wait_for(calls, "timed the layers")


def _timing(run: Run, count: int, profiles: Sequence[Profile]) -> Timing:
    """Return the mean of actors that timed the layers at once."""
    network = run.architecture
    sizes = feature_bytes(network, run.resolved.precision)
    columns = zip(*(each.times for each in profiles), strict=True)
    return Timing(
        network=network.name,
        loss=run.config.loss,
        batch_size=run.recipe.batch_size,
        neighbours=count - 1,
        layers=tuple(
            TimedLayer(**_mean(times), weights=layer.num_weights, feature_bytes=size)
            for times, layer, size in zip(columns, network.layers, sizes, strict=True)
        ),
    )


def _mean(times: Sequence[LayerTime]) -> dict[str, float]:
    names = [field.name for field in dataclasses.fields(LayerTime)]
    return {name: sum(getattr(each, name) for each in times) / len(times) for name in names}


def _time_calls(actors: Sequence[ActorHandle[Any]]) -> tuple[float, float]:
    """Return the seconds of an actor for an empty call, and those of the driver to make one."""
    start = time.perf_counter()
    calls = [actor.__ray_ready__.remote() for _ in range(_CALLS) for actor in actors]
    made_s = time.perf_counter() - start
    ray.get(calls)
    return (time.perf_counter() - start) / _CALLS, made_s / len(calls)


def save_profile(config: TrainConfig, path: str) -> DeviceProfile:
    """Measure a profile and write it, beside the timings of other networks in the file.

    Raises:
        UserError: the file cannot be written, or has the profile of another device.
    """
    file = Path(path)
    old = read_profile_file(file) if file.exists() else None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unwritable(path, error) from error
    command = f"rayff plan --arch {config.arch} --loss {config.loss} --save-profile {file.name}"
    profile = measure_profile(config, command)
    profile = profile if old is None else merged(old, profile)
    try:
        write_atomically(file, profile_json(profile).encode())
    except OSError as error:
        raise _unwritable(path, error) from error
    return profile


def _unwritable(path: str, error: OSError) -> UserError:
    return UserError(
        f"--save-profile {path} cannot be written: {error.strerror}; name another file"
    )
