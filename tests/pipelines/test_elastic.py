"""Clusters that grow, shrink and hold several kinds of devices: what is asked of them, without Ray."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from ray import exceptions as rx

from atom.errors import ClusterError
from pipelines.workers import resources, tasks, versions
from pipelines.workers.nodes import ClusterInfo, check_request
from pipelines.workers.pool import Limits
from pipelines.workers.resources import AHEAD, LOOK_S, ActorSize, Width, choose_size
from pipelines.workers.retries import Waiting
from pipelines.workers.settings import ClusterSettings

PREEMPTED = rx.RayActorError("actor", "the node was drained", preempted=True)


def info(*nodes: tuple[float, float, str], **most: float) -> ClusterInfo:
    """A cluster of (CPUs, GPUs, kind of GPU), and what an autoscaler may bring it to."""
    cpus, gpus, kinds = zip(*nodes, strict=True) if nodes else ((), (), ())
    return ClusterInfo(
        "existing", sum(cpus), sum(gpus), len(nodes), cpus, gpus, node_accelerators=kinds, most=most
    )


def chosen(cluster: ClusterInfo, *, num_units: int = 9, **asked: Any) -> ActorSize:
    return choose_size(cluster, ClusterSettings(**asked), threads=1, num_units=num_units)[0]


def test_a_cluster_that_starts_from_zero_is_taken_at_its_autoscalers_word() -> None:
    empty = info(CPU=4.0)
    assert chosen(empty).num_actors == 4
    assert chosen(empty, num_actors=3).num_actors == 3
    assert "may start up to 4 CPUs, 0 GPUs" in empty.describe()
    with pytest.raises(ClusterError, match=r"--num-actors 5 .* pass --num-actors 4 or less"):
        chosen(empty, num_actors=5)
    size, kind = choose_size(info(CPU=8.0, GPU=2.0), ClusterSettings(), threads=1, num_units=9)
    assert (size.num_actors, size.gpus, kind) == (2, 1.0, "cuda")


def test_nodes_that_are_to_come_are_waited_for_where_that_is_asked() -> None:
    with pytest.raises(ClusterError, match=r"nodes have nothing yet; .*--wait-for-nodes-s"):
        chosen(info())
    # Which device it will be must not depend on which node comes first.
    with pytest.raises(ClusterError, match=r"--wait-for-nodes-s: no node tells yet .* --accelerator-type"):
        chosen(info(), wait_for_nodes_s=60.0)
    assert chosen(info(), wait_for_nodes_s=60.0, gpus_per_actor=0).num_actors == 1
    size, kind = choose_size(
        info(), ClusterSettings(wait_for_nodes_s=60.0, accelerator_type="H100"), threads=1, num_units=9
    )
    assert (size.accelerator, size.gpus, size.num_actors, kind) == ("H100", 1.0, 1, "cuda")
    assert chosen(info((1, 0, "")), num_actors=4, wait_for_nodes_s=60.0).num_actors == 4
    assert ClusterSettings(wait_for_nodes_s=900.0).limits().pending_timeout_s == 900
    assert ClusterSettings(wait_for_nodes_s=5.0).limits().pending_timeout_s == Limits().pending_timeout_s
    # What nobody can give is refused all the same.
    with pytest.raises(ClusterError, match="GPUs are given whole"):
        check_request(info(), num_actors=1, cpus_per_actor=0, gpus_per_actor=1.5, waits=True)


def test_a_pool_grows_with_the_cluster_up_to_what_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, cluster, looks = 0.0, info((2, 0, "")), 0

    def look() -> ClusterInfo:
        nonlocal looks
        looks += 1
        return cluster

    monkeypatch.setattr(resources, "cluster_info", look)
    monkeypatch.setattr(resources.time, "monotonic", lambda: now_s)
    size = chosen(cluster, num_units=5)
    width = Width(size)
    cluster = info((2, 0, ""), (2, 0, ""))
    assert (width(), looks) == (2, 0)
    now_s = LOOK_S
    assert (width(), width(), looks) == (4, 4, 1)
    # A node that is gone is waited for: its workers are asked for anew and find their place when one comes.
    cluster, now_s = info((2, 0, "")), 2 * LOOK_S
    assert width() == 4
    cluster, now_s = info((9, 0, "")), 3 * LOOK_S
    assert width() == 5
    assert Width(size.at_most(1))() == 1
    # Where nodes are to come, more are asked for than fit.
    cluster, now_s = info((2, 0, "")), 0.0
    waiting = Width(chosen(cluster, num_units=50, wait_for_nodes_s=60.0))
    assert waiting() == 2 + AHEAD
    cluster, now_s = info((2, 0, ""), (4, 0, "")), LOOK_S
    assert waiting() == 6 + AHEAD
    assert Width(chosen(cluster, num_actors=3, wait_for_nodes_s=60.0))() == 3
    asked = Width(chosen(info((2, 0, "")), num_actors=2))
    now_s += LOOK_S
    assert asked() == 2


def test_tasks_follow_the_cluster_up_to_what_the_user_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = [info((2, 0, "")), info((2, 0, ""), (4, 0, ""))]

    def slots(size: ActorSize) -> list[int]:
        now = iter(clusters)
        monkeypatch.setattr(tasks, "cluster_info", lambda: next(now))
        room = tasks._Room(size, limit_s=0.0)
        before = room.slots
        room.check()
        return [before, room.slots]

    assert slots(chosen(clusters[0])) == [2, 6]
    assert slots(chosen(clusters[0], num_actors=2)) == [2, 2]
    # One that waits tells an autoscaler; more would use up their time while they wait for each other.
    assert slots(chosen(clusters[0], wait_for_nodes_s=60.0)) == [3, 7]
    assert slots(ActorSize(1, cpus=0.5, gpus=0.0)) == [4, 12]
    # A worker of two threads takes the place of two trainings.
    assert slots(replace(chosen(clusters[0]), cpus=2.0)) == [1, 3]
    assert slots(replace(chosen(clusters[0]), cpus=2.0).one_thread) == [2, 6]


def test_all_work_is_done_on_one_kind_of_gpu_and_the_others_are_named() -> None:
    mixed = info((8, 1, "A100"), (8, 2, "H100"), (8, 1, "A100"), (4, 0, ""), (8, 1, ""))
    size = chosen(mixed)
    assert (size.accelerator, size.num_actors) == ("A100", 2)
    assert size.options["accelerator_type"] == "A100"
    assert size.one_thread.options == {"num_cpus": 0, "num_gpus": 1.0, "accelerator_type": "A100"}
    assert size.left_out == (
        "1 node with H100, 1 node without a GPU, 1 node with GPUs of a kind that Ray does not know"
    )
    other = chosen(mixed, accelerator_type="H100")
    assert (other.accelerator, other.num_actors) == ("H100", 2)
    assert "2 nodes with A100" in other.left_out
    assert mixed.accelerators() == Counter({"A100": 2, "H100": 2})
    on_cpus = chosen(mixed, gpus_per_actor=0)
    assert (on_cpus.accelerator, on_cpus.left_out, on_cpus.options) == (
        "",
        "",
        {"num_cpus": 1.0, "num_gpus": 0},
    )
    with pytest.raises(ClusterError, match="--accelerator-type T4: the cluster has A100, H100"):
        chosen(mixed, accelerator_type="T4")
    with pytest.raises(ClusterError, match="--accelerator-type A100: the workers compute on CPUs"):
        chosen(mixed, accelerator_type="A100", gpus_per_actor=0)


def test_a_preemption_costs_no_retry() -> None:
    waiting = Waiting(["a"], Limits(max_retries=1))
    for _ in range(5):
        waiting.failed(waiting.take(), PREEMPTED)
        assert waiting.ready() == 1
    assert waiting.outcome.retries == 0
    waiting.failed(waiting.take(), rx.NodeDiedError("the node died"))
    waiting.failed(waiting.take(), rx.NodeDiedError("the node died"))
    assert "gave up after 2 tries" in waiting.outcome.failed["a"].reason


def test_a_node_with_other_libraries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    here = versions.versions()
    versions._compare("192.0.2.7", dict(here), here)
    with pytest.raises(
        ClusterError, match=r"Node 192\.0\.2\.7 .* torch 0\.1 \(here .*\): results would depend"
    ):
        versions._compare("192.0.2.7", {**here, "torch": "0.1"}, here)


def test_memory_counts_for_what_is_to_come() -> None:
    grows = replace(info(CPU=8.0), most={"CPU": 8.0, "memory": 4.0 * 2**30})
    each = {"cpus_per_actor": 1.0, "gpus_per_actor": 0.0}
    assert (grows.slots_to_come(**each), grows.slots_to_come(**each, memory_per_actor=1.0)) == (8, 4)
