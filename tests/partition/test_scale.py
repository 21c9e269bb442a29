"""Plans for many devices: costs on a cluster by hand, and what holds for every plan."""

import dataclasses
import time
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayff.models.zoo import architecture
from rayff.partition.cluster import Cluster, ClusterCosts, Link
from rayff.partition.device_profile import read_profile
from rayff.partition.layer_costs import AllReduceTime
from rayff.partition.scale import Scenario, predict
from tests.helpers.profiles import TINYCNN, device_profile, timing

NODE, NETWORK = Link(bytes_per_s=100.0, latency_s=0.5), Link(bytes_per_s=10.0, latency_s=2.0)


def cluster(**options: Any) -> Cluster:
    return Cluster(**{"devices_per_node": 4, "node": NODE, "network": NETWORK, **options})


def costs(**options: Any) -> ClusterCosts:
    """Return costs of three layers of 4, 6 and 2 s for 8 images."""
    values: dict[str, Any] = {
        "layer_s": [4.0, 6.0, 2.0],
        "boundary_s": [0.0, 0.0, 0.0],
        "step_s": [1.0, 0.5, 0.25],
        "images": 8,
        "boundary_bytes": [0, 200, 40],
        "weight_bytes": [50, 100, 200],
        "link": NODE,
        "cluster": cluster(),
    }
    return ClusterCosts(**{**values, **options})


class TestClusterCosts:
    def test_a_replica_gets_whole_images(self):
        assert [costs().share(count) for count in (1, 2, 3, 8)] == [1, 1 / 2, 3 / 8, 1 / 8]

    def test_replicas_sum_by_the_slower_link_where_a_node_does_not_hold_them(self):
        # 2 (r - 1) / r of 150 bytes, and log2 r rounds for each of two layers
        assert costs().sums_s(0, 2, 2) == pytest.approx(150 / 100 + 1 * 0.5 * 2)
        assert costs().sums_s(0, 2, 4) == pytest.approx(1.5 * 150 / 100 + 2 * 0.5 * 2)
        assert costs().sums_s(0, 2, 5) == pytest.approx(1.6 * 150 / 10 + 3 * 2.0 * 2)
        assert costs().sums_s(0, 2, 1) == 0

    def test_a_measured_all_reduce_counts_in_a_node_and_bounds_that_between_nodes(self):
        measured = AllReduceTime(call_s=3.0, byte_s=1 / 5)
        some = costs(cluster=cluster(node_all_reduce=measured))
        assert some.sums_s(2, 3, 2) == pytest.approx(200 / 5 + 3)
        assert some.sums_s(2, 3, 8) == pytest.approx(1.75 * 200 / 5 + 3 * 3)

    def test_the_slower_of_work_and_link_decides(self):
        some = costs()
        assert some.stage_s(1, 2) == pytest.approx(6.5)  # its links take 2 and 0.4 s
        assert some.stage_s(1, 2, 4) == pytest.approx(6 / 4 + 0.5 + 1.5 + 2 * 0.5)
        slow = costs(link=NETWORK)
        assert slow.stage_s(1, 2) == 20
        assert slow.stage_s(1, 2, 2) == 10
        assert slow.stage_s(2, 3) == 4

    def test_a_call_costs_an_actor_its_time_and_the_driver_that_of_all_actors(self):
        some = costs(chunk=4, cluster=cluster(message_s=1.0, call_s=0.2))
        assert some.work_s(0, 3) == pytest.approx(12 + 1.75 + 1 / 4)
        assert some.driver_s(10) == pytest.approx(0.5)


def scenario(**options: Any) -> Scenario:
    values: dict[str, Any] = {
        "profile": device_profile(),
        "architecture": TINYCNN,
        "cluster": cluster(
            node=Link(bytes_per_s=1e12, latency_s=0.0), network=Link(bytes_per_s=1e11, latency_s=0)
        ),
        "batch_size": 8,
        "images": 800,
        "epochs": 2,
    }
    return Scenario(**{**values, **options})


def test_one_device_takes_all_layers_and_four_with_free_links_a_quarter_each():
    alone, four = predict(scenario(), 1), predict(scenario(replicas=(1, 1, 1, 1), chunk=1), 4)
    assert alone.batch_s == pytest.approx(10e-3)
    assert alone.run_s == pytest.approx(200 * 10e-3)
    assert (four.division.cuts, four.bottleneck) == ((1, 2, 3), "stage 3")
    assert four.batch_s == pytest.approx(4e-3)
    # three stages and links are crossed before the first batch is in the last one
    links_s = sum(8 * size / 1e12 for size in (409_600, 204_800, 102_400))
    assert four.run_s == pytest.approx((1 + 2 + 3 + 4) * 1e-3 + links_s + 199 * 4e-3)


def test_a_cluster_of_two_nodes_is_asked_for_only_where_it_is_faster():
    slow = cluster(node=Link(bytes_per_s=1e12, latency_s=0.0), network=NETWORK)
    assert predict(scenario(cluster=slow), 64).actors <= 4
    assert predict(scenario(), 64).actors > 4


def test_neighbours_count_up_to_a_full_node():
    beside = timing(8, [2e-3, 4e-3, 6e-3, 8e-3], neighbours=1)
    profile = device_profile(timing(8, [1e-3, 2e-3, 3e-3, 4e-3]), beside)
    assert predict(scenario(profile=profile), 1).batch_s == pytest.approx(10e-3)
    assert predict(scenario(profile=profile, replicas=(1, 1), cuts=(2,)), 2).batch_s == (
        pytest.approx(14e-3)
    )
    # two of them are slower than one alone, which is left
    assert predict(scenario(profile=profile, cuts=(1,)), 2).batch_s == pytest.approx(18e-3)
    assert predict(scenario(profile=profile), 2).batch_s <= 10e-3


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    seconds = st.lists(st.floats(1e-4, 1e-2), min_size=4, max_size=4)
    rates, few = st.floats(1e6, 1e12), st.floats(0.0, 1e-3)

    def link() -> Link:
        return Link(bytes_per_s=draw(rates), latency_s=draw(few))

    timings = [
        timing(size, draw(seconds), neighbours=neighbours, optimizer_s=draw(few))
        for size, neighbours in ((8, 0), (4, 0), (8, 1), (4, 1))
    ]
    return scenario(
        profile=device_profile(*timings),
        cluster=cluster(
            node=link(),
            network=link(),
            devices_per_node=draw(st.integers(1, 8)),
            message_s=draw(few),
            call_s=draw(few),
        ),
    )


@settings(max_examples=25, deadline=None)
@given(some=scenarios())
def test_more_devices_never_predict_less_and_none_gives_more_than_itself(some: Scenario):
    found = [predict(some, count) for count in (1, 2, 3, 5, 20)]
    for fewer, more in zip(found, found[1:], strict=False):
        assert more.batch_s <= fewer.batch_s * (1 + 1e-9)
    for each in found:
        assert each.actors <= each.devices
        assert found[0].batch_s / each.batch_s <= each.actors * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(some=scenarios(), devices=st.integers(1, 12), window=st.integers(1, 4) | st.none())
def test_a_run_ends_when_the_bottleneck_has_had_every_chunk(
    some: Scenario, devices: int, window: int | None
):
    some = dataclasses.replace(some, window=window, epochs=3)
    found = predict(some, devices)
    costs, division = found.costs, found.division
    bounds = [0, *division.cuts, len(costs.layer_s)]
    actors = zip(bounds, bounds[1:], division.replicas, strict=False)
    first_s = costs.driver_s(found.actors) + sum(costs.work_s(*each) for each in actors)
    chunks = 3 * -(-some.batches // costs.chunk)
    gap_s = found.batch_s * costs.chunk
    assert found.batch_s >= max(costs.stages_s(division.cuts, division.replicas)) * (1 - 1e-9)
    assert found.run_s >= (costs.chunk * first_s + (chunks - (window or 1)) * gap_s) * (1 - 1e-9)
    links = zip(division.cuts, division.replicas, division.replicas[1:], strict=False)
    first_s += sum(max(costs.link_s(cut, r), costs.link_s(cut, s)) for cut, r, s in links)
    latency_s = len(division.replicas) * costs.link.latency_s
    most_s = costs.chunk * first_s + latency_s + (chunks - 1) * gap_s
    assert found.run_s <= most_s * (1 + 1e-9)
    if window is None:
        assert found.run_s == pytest.approx(most_s)


@settings(max_examples=40, deadline=None)
@given(some=scenarios(), count=st.integers(1, 4))
def test_no_other_division_is_faster(some: Scenario, count: int):
    found = predict(some, count)
    fastest = min(
        predict(scenario_with(some, cuts, replicas), sum(replicas)).batch_s
        for stages in range(1, count + 1)
        for cuts in combinations(range(1, 4), stages - 1)
        for replicas in product(range(1, count + 1), repeat=stages)
        if sum(replicas) <= count
    )
    assert found.batch_s <= fastest * (1 + 1e-9)


def scenario_with(some: Scenario, cuts: tuple[int, ...], replicas: tuple[int, ...]) -> Scenario:
    return scenario(profile=some.profile, cluster=some.cluster, cuts=cuts, replicas=replicas)


@pytest.mark.parametrize("name", ["resnet", "resnet_large", "resnet_imagenet"])
def test_a_thousand_devices_are_planned_in_seconds(name: str):
    network = architecture(name, num_classes=10, image_channels=3)
    fast = Link(bytes_per_s=1e12, latency_s=1e-6)
    large = scenario(
        profile=read_profile("h200"),
        architecture=network,
        cluster=Cluster(devices_per_node=8, node=fast, network=fast),
        batch_size=1024,
    )
    start = time.perf_counter()
    found, alone = predict(large, 1024), predict(large, 1)
    assert time.perf_counter() - start < 10
    assert 64 < found.actors <= 1024
    assert 64 < alone.batch_s / found.batch_s <= found.actors
