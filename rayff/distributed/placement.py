"""Resources of the stages: found, checked and reserved before anything starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup, get_current_placement_group

from rayff.config.errors import UserError
from rayff.config.text import plural
from rayff.config.train_config import Placement, TrainConfig
from rayff.distributed.failure_policy import PATIENCE_S
from rayff.partition.plan import StageResources

APART = ", each on a node of its own (--placement strict_spread)"
"""Follows the number of actors in messages about strict_spread."""
_NOTICE_S = 5.0
_PROBE_S = 1.0
_ID_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Node:
    """What a node has in all, used or not."""

    cpus: float
    gpus: float
    store_bytes: float = 0.0
    """Of its object store."""


class NoRoomError(UserError):
    """The cluster did not give the resources that it seemed to have."""


def nodes() -> list[Node]:
    """Return the nodes of the cluster that are alive."""
    resources = [node["Resources"] for node in _alive()]
    return [
        Node(
            cpus=r.get("CPU", 0.0),
            gpus=r.get("GPU", 0.0),
            store_bytes=r.get("object_store_memory", 0.0),
        )
        for r in resources
    ]


def _alive() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in found if node["Alive"]]


def capacity(there: Sequence[Node], each: StageResources, *, apart: bool = False) -> int:
    """Return how many actors of that size the nodes hold; an actor does not span nodes.

    `apart` is whether each is to have a node of its own.
    """
    return sum(
        min(
            int(node.cpus / each.cpus + 1e-9) if each.cpus else 10**6,
            int(node.gpus / each.gpus + 1e-9) if each.gpus else 10**6,
            1 if apart else 10**6,
        )
        for node in there
    )


def num_actors(config: TrainConfig, there: Sequence[Node], num_layers: int) -> int:
    """Return how many actors a run has.

    One that does not say has one a GPU; on CPUs two stages, or one worker of backpropagation.
    Where each is to have a node of its own, not more than there are nodes.
    """
    if config.workers is not None:
        return config.workers
    if config.replica_counts is not None:
        return sum(config.replica_counts)
    if config.stages is not None:
        return config.stages
    if config.cuts is not None:
        return len(config.cuts) + 1
    gpus = _devices([n.gpus for n in there], config.apart) if config.device != "cpu" else 0
    cpus = _devices([n.cpus for n in there], config.apart)
    if config.method != "ff":
        return gpus or 1
    if config.elastic_range is not None:
        fewest, most = config.elastic_range
        return min(max(fewest, gpus or cpus), most, num_layers)
    wanted = gpus or (2 if cpus >= 2 else 1)
    return wanted if config.replicas == "auto" else min(wanted, num_layers)


def _devices(per_node: Sequence[float], apart: bool) -> int:
    """Return how many actors the nodes have whole devices for."""
    return sum(amount >= 1 for amount in per_node) if apart else int(sum(per_node))


def actor_range(config: TrainConfig, there: Sequence[Node], num_layers: int) -> tuple[int, int]:
    """Return how many actors a run may have, least and most, as the cluster shrinks and grows."""
    if config.elastic_range is not None:
        fewest, most = config.elastic_range
        return fewest, min(most, num_layers)
    count = num_actors(config, there, num_layers)
    fixed = config.cuts is not None or config.replicas is not None or config.method != "ff"
    return (count if fixed else 1), count


def stage_resources(config: TrainConfig, there: Sequence[Node], count: int) -> StageResources:
    """Return what each of `count` actors takes: what the run says, or an even share.

    Raises:
        UserError: the cluster cannot hold the plan.
    """
    gpus = config.gpus_per_stage
    if gpus is None:
        found = [n.gpus for n in there]
        gpus = _share(count, found, apart=config.apart) if config.device != "cpu" else 0.0
    total = sum(node.gpus for node in there)
    if config.device == "cuda" and not total:
        raise UserError(
            "--device cuda: the cluster has no GPUs; use --device cpu, or join a cluster with "
            "GPUs (RAY_ADDRESS)"
        )
    if config.device == "cuda" and not gpus:
        raise UserError(
            f"--device cuda: the cluster has {total:g} GPUs and a stage would take 0; use "
            "--device cpu, or a larger --gpus-per-stage"
        )
    if config.transport in ("cuda-ipc", "nccl") and not gpus:
        raise UserError(
            f"--transport {config.transport} is for GPUs, and the stages have none; use "
            "--transport object-store or gloo"
        )
    cpus = config.cpus_per_stage
    if cpus is None:
        found = [n.cpus for n in there]
        cpus = 1.0 if gpus else _share(count, found, most=None, apart=config.apart) or 1.0
    each = StageResources(cpus=cpus, gpus=gpus)
    if capacity(there, each, apart=config.apart) < count:
        shown = " + ".join(f"({node.gpus:g} GPUs, {node.cpus:g} CPUs)" for node in there)
        raise UserError(
            f"the cluster cannot hold the plan: {plural(count, 'actor')} of {gpus:g} GPUs and "
            f"{cpus:g} CPUs each {'is' if count == 1 else 'are'} needed"
            f"{APART if config.apart else ''}, and its nodes have {shown or 'nothing'}; use fewer "
            "--stages, --replicas or --workers"
            + (", or --placement spread" if config.apart else "")
            + (
                ""
                if config.apart and len(there) < count
                else ", or a smaller --cpus-per-stage or --gpus-per-stage (fractions share)"
            )
        )
    return each


def _share(
    count: int, per_node: Sequence[float], *, most: int | None = 1, apart: bool = False
) -> float:
    """Return the largest whole number, or else fraction 1/k, that every actor can have.

    `most` bounds it; an actor takes all its resources from one node, and where they are `apart`
    only one from each. 0 where there is nothing.
    """
    total = sum(per_node)
    if total <= 0:
        return 0.0
    largest = int(max(per_node)) if most is None else most
    if apart:  # the richest nodes, of which the poorest decides
        least = min(amount for amount in sorted(per_node)[-count:] if amount > 0)
        return float(min(int(least), largest)) if least >= 1 else least
    for whole in range(largest, 0, -1):
        if sum(int(amount // whole) for amount in per_node) >= count:
            return float(whole)
    shares = 1
    while sum(int(amount) * shares for amount in per_node if amount >= 1) < count:
        shares += 1
        if shares > 1000:
            return 0.0
    return int(10_000 / shares) / 10_000  # Ray counts in steps of 1/10,000


@contextmanager
def reserve(
    each: StageResources,
    count: int,
    warn: Callable[[str], None],
    patience_s: float = PATIENCE_S,
    placement: Placement = "pack",
) -> Iterator[PlacementGroup]:
    """Hold one placement group with a bundle for each actor, placed as the run says.

    Where this process itself runs in a group with such bundles, as a trial of a search does, that
    one is used and kept.

    Raises:
        NoRoomError: the cluster does not give the resources in time.
    """
    around = get_current_placement_group()
    if around is not None and _holds(around, each, count, placement):
        yield around
        return
    group = placement_group([bundle(each)] * count, strategy=placement.upper())
    apart = APART if placement == "strict_spread" else ""
    try:
        _wait(group, f"{plural(count, 'actor')} of {each}{apart}", warn, patience_s)
        yield group
    finally:
        remove_placement_group(group)


def has_free_room(
    group: PlacementGroup, each: StageResources, more: int, placement: Placement
) -> bool:
    """Return whether the cluster can hold that many more actors now."""
    taken = ",".join(dict.fromkeys(filter(None, _node_ids(group))))
    elsewhere = {"ray.io/node-id": f"!in({taken})"} if placement == "strict_spread" else {}
    probe = placement_group(
        [bundle(each)] * more,
        strategy=placement.upper(),
        bundle_label_selector=[elsewhere] * more,
    )
    try:
        return bool(probe.wait(_PROBE_S))
    finally:
        remove_placement_group(probe)


def node_names(group: PlacementGroup, count: int) -> tuple[str, ...]:
    """Return where the first `count` bundles are; nothing where there is one node only."""
    alive = _alive()
    if len(alive) < 2:
        return ()
    names = short_names(
        {n["NodeID"]: (n["NodeManagerHostname"], n["NodeManagerAddress"]) for n in alive}
    )
    return tuple(names.get(node, "a lost node") for node in _node_ids(group)[:count])


def short_names(there: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    """Return the shortest names that distinguish the nodes.

    Args:
        there: host name and address of each node, by its id.
    """
    choices = (
        {node: host.partition(".")[0] for node, (host, _) in there.items()},
        {node: host for node, (host, _) in there.items()},
        {node: address for node, (_, address) in there.items()},
    )
    for names in choices:
        if all(names.values()) and len(set(names.values())) == len(names):
            return names
    return {node: node[:_ID_SHOWN] for node in there}


def _node_ids(group: PlacementGroup) -> list[str]:
    """Return the node of each bundle, in order; nothing for one that has just lost its node."""
    where: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    return [where.get(index, "") for index in range(group.bundle_count)]


def bundle(each: StageResources) -> dict[str, float]:
    """Return what one actor takes, as Ray names it."""
    return {"CPU": each.cpus, **({"GPU": each.gpus} if each.gpus else {})}


def _holds(group: PlacementGroup, each: StageResources, count: int, placement: Placement) -> bool:
    """Return whether the first `count` bundles of a group have room for an actor each."""
    if (
        placement == "strict_spread"
        and placement_group_table(group)["strategy"] != "STRICT_SPREAD"
    ):
        return False
    bundles: list[dict[str, float]] = group.bundle_specs[:count]
    return len(bundles) == count and all(
        there.get(kind, 0.0) >= amount
        for there in bundles
        for kind, amount in bundle(each).items()
    )


def _wait(
    group: PlacementGroup, wanted: str, warn: Callable[[str], None], patience_s: float
) -> None:
    deadline = time.monotonic() + patience_s
    while not group.wait(_NOTICE_S):
        state = placement_group_table(group)["stats"]["scheduling_state"]
        if state == "INFEASIBLE":
            raise NoRoomError(f"the cluster cannot hold the plan: {wanted} fit on no set of nodes")
        available: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        free = {kind: available.get(kind, 0.0) for kind in ("CPU", "GPU")}
        if time.monotonic() > deadline:
            raise NoRoomError(
                f"waited {patience_s:g} s for {wanted}, but other work holds them "
                f"(free now: {free}); use fewer --stages or come back later"
            )
        warn(f"waiting for {wanted}: other work holds them (free now: {free})")
