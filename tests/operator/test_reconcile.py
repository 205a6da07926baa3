"""The order of writes in one run, with a fake in place of the API server and of the pods."""

import kube_objects as k
import pytest
from operator_world import KEY, World, reading, scaling_world
from sheaf_operator.api import names
from sheaf_operator.cluster.errors import ApiError, Unreachable
from sheaf_operator.cluster.lease import Lease
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.cluster.reading import Reading
from sheaf_operator.run.reporter import RESAY
from sheaf_operator.settings import Settings


async def test_a_settled_deployment_is_not_written_and_hardly_read() -> None:
    world = scaling_world(1)
    assert await world.run() == []
    assert await world.run(5) == []
    assert world.cluster.writes == []
    reads = world.cluster.reads
    for _ in range(5):
        assert await world.run(5) == []
    assert world.cluster.reads == reads
    assert world.again == Settings().autoscale_interval


async def test_what_is_not_at_rest_is_looked_at_again_after_the_resync_interval() -> None:
    world = scaling_world(2)
    assert world.cluster.observed is not None
    pods = k.settled(k.spec(), replicas=2, ready=1).pods
    world.change(pods=pods)
    await world.run()
    reads = world.cluster.reads
    await world.run(Settings().resync_interval + 1)
    assert world.cluster.reads == reads + 1


async def test_what_is_at_rest_is_looked_at_when_something_changes_however_late() -> None:
    world = scaling_world(1)
    await world.run()
    reads = world.cluster.reads
    for _ in range(5):
        await world.run(Settings().resync_interval + 1)
    assert world.cluster.reads == reads
    world.change(deployment=k.deployment(1))
    await world.run(1)
    assert world.cluster.reads == reads + 1


async def test_looks_and_scrapes_are_counted_and_forgotten_with_the_resource() -> None:
    world = scaling_world(2)
    world.scraper.load = {"p0": "no answer"}
    for _ in range(3):
        await world.run(5)
    counters = ("observations", "scrapes", "scrape_failures")
    assert [world.counted(c) for c in counters] == [1, 6, 3]
    world.cluster.observed = None
    world.reconciler.touch(KEY)
    await world.run()
    assert [world.counted(c) for c in counters] == [None] * 3


async def test_without_a_decision_there_is_no_wanted_count() -> None:
    given = k.spec(autoscaling={"mode": "Disabled"})
    world = World(given, k.settled(given))
    await world.run()
    labels = {"namespace": KEY[0], "name": KEY[1]}
    found = world.telemetry.registry.get_sample_value("sheaf_operator_desired_replicas", labels)
    assert found is None  # 0 would say that the scaler wants none


async def test_load_scales_up_at_once() -> None:
    world = scaling_world(1)
    world.scraper.load = {"p0": reading(waiting=30, running=8)}
    assert await world.run() == [("scale", 4)]
    assert world.cluster.status["autoscaling"]["desired"] == 4
    assert "30 requests waiting" in world.cluster.status["autoscaling"]["reason"]


async def test_scale_down_marks_looks_again_and_takes_one() -> None:
    world = scaling_world(3)
    world.scraper.load = {"p0": reading(blocks=9), "p1": reading(blocks=2), "p2": reading(blocks=5)}
    assert await world.run() == [("cost", "p1", "-1000")]
    assert world.again == Settings().victim_wait
    assert await world.run(1) == []
    assert await world.run(1.1) == [("scale", 2)]


async def test_a_victim_that_got_busy_is_spared() -> None:
    world = scaling_world(3)
    world.scraper.load = {"p0": reading(blocks=9), "p1": reading(blocks=2), "p2": reading(blocks=5)}
    await world.run()
    marked = k.settled(k.spec(), replicas=3, ready=3).pods
    marked[1]["metadata"]["annotations"] = {names.DELETION_COST: "-1000"}
    world.change(pods=marked)
    world.scraper.load["p1"] = reading(blocks=50)
    assert await world.run(2.1) == [("cost", "p1", None), ("cost", "p2", "-1000")]
    assert await world.run(2.1) == [("scale", 2)]


async def test_an_unready_pod_goes_without_a_mark() -> None:
    world = scaling_world(3)
    world.change(pods=k.settled(k.spec(), replicas=3, ready=2).pods)
    assert await world.run() == [("scale", 2)]


async def test_the_next_step_down_waits_for_the_last() -> None:
    world = scaling_world(3)
    # The count is 2 already, and the third pod has not begun to terminate.
    world.change(deployment=k.deployment(2))
    assert await world.run() == []


async def test_no_step_down_while_two_revisions_are_live() -> None:
    world = scaling_world(3)
    pods = k.settled(k.spec(), replicas=3, ready=3).pods
    pods[0]["metadata"]["labels"]["pod-template-hash"] = "t2"
    world.change(pods=pods)
    assert await world.run() == []


async def test_a_mark_is_taken_back_when_nobody_has_to_go() -> None:
    world = scaling_world(2)
    pods = k.settled(k.spec(), replicas=2, ready=2).pods
    pods[0]["metadata"]["annotations"] = {names.DELETION_COST: "-1000"}
    world.change(pods=pods)
    world.scraper.load = {"p0": reading(running=8), "p1": reading(running=8)}
    assert await world.run() == [("cost", "p0", None)]


async def test_somebody_elses_deletion_cost_is_left_alone() -> None:
    world = scaling_world(1)
    pods = k.settled(k.spec()).pods
    pods[0]["metadata"]["annotations"] = {names.DELETION_COST: "100"}
    world.change(pods=pods)
    assert await world.run() == []


async def test_a_deployment_made_anew_gets_its_count_back() -> None:
    world = scaling_world(3, window=300)
    await world.run()
    fresh = k.deployment(1)
    fresh["metadata"]["uid"] = "another"
    world.change(deployment=None, pods=())
    assert await world.run(5) == []
    world.change(deployment=fresh, pods=(k.pod("q", k.revision(k.spec())),))
    assert await world.run(5) == [("scale", 3)]


@pytest.mark.parametrize("mode", ["Advisory", "Disabled"])
async def test_other_modes_write_no_count(mode: str) -> None:
    given = k.spec(autoscaling={"mode": mode, "maxReplicas": 5})
    world = World(given, k.settled(given))
    world.scraper.load = {"p0": reading(waiting=99, running=8)}
    assert await world.run() == []
    decided = world.cluster.status.get("autoscaling", {}).get("desired")
    assert decided == (5 if mode == "Advisory" else None)


async def test_without_the_lease_nothing_is_written() -> None:
    world = World(k.spec(), Observed(k.owner()))
    world.lease.held = False
    assert await world.run() == []
    assert world.cluster.reads == 0


async def test_a_refused_object_is_stalled_with_the_servers_words() -> None:
    world = World(k.spec(), Observed(k.owner()))
    world.cluster.fail = ApiError(422, "Invalid", "spec.x is wrong")
    with pytest.raises(ApiError):
        await world.run()
    stalled = {c["type"]: c for c in world.cluster.status["conditions"]}["Stalled"]
    assert (stalled["status"], stalled["reason"]) == ("True", "Rejected")
    assert "spec.x is wrong" in stalled["message"]


@pytest.mark.parametrize(
    ("said", "stalled", "reconciling"),
    [
        (
            "failed to create typed patch object: .spec.x: field not declared in schema",
            "Rejected",
            "Rejected",
        ),
        ('failed calling webhook "w": connection refused', "Healthy", "ApplyFailed"),
    ],
)
async def test_a_500_is_a_stall_only_where_repeating_cannot_help(
    said: str, stalled: str, reconciling: str
) -> None:
    world = World(k.spec(), Observed(k.owner()))
    world.cluster.fail = ApiError(500, "InternalError", said)
    with pytest.raises(ApiError):
        await world.run()
    reasons = {c["type"]: c["reason"] for c in world.cluster.status["conditions"]}
    assert (reasons["Stalled"], reasons["Reconciling"]) == (stalled, reconciling)


async def test_a_server_that_does_not_answer_is_retried_and_not_stalled() -> None:
    world = World(k.spec(), Observed(k.owner()))
    world.cluster.fail = Unreachable("timeout")
    with pytest.raises(Unreachable):
        await world.run()
    said = {c["type"]: c for c in world.cluster.status["conditions"]}
    assert said["Stalled"]["status"] == "False"
    assert said["Reconciling"]["reason"] == "ApplyFailed"
    world.cluster.fail = None
    assert await world.run(1) == [("apply", "ServingRuntime"), ("apply", "InferenceService")]


async def test_a_clash_at_creation_is_a_name_conflict() -> None:
    world = World(k.spec(), Observed(k.owner()))
    world.cluster.fail = ApiError(409, "Conflict", "conflict with kubectl")
    await world.run()
    said = {c["type"]: c["reason"] for c in world.cluster.status["conditions"]}
    assert said["Stalled"] == "NameConflict"
    assert world.again == 10


async def test_a_problem_stays_in_the_status_until_it_is_gone() -> None:
    world = World(k.spec(), Observed(k.owner(), kserve=False))
    for _ in range(3):
        await world.run(1)
        said = {c["type"]: c["reason"] for c in world.cluster.status["conditions"]}
        assert said["Stalled"] == "KServeMissing"
    world.change(kserve=True)
    assert await world.run(1) == [("apply", "ServingRuntime"), ("apply", "InferenceService")]


async def test_a_spec_that_cannot_be_read_is_stalled() -> None:
    world = World(k.spec(), Observed(k.owner()))
    assert world.cluster.observed is not None
    world.cluster.observed.owner["spec"] = {"model": {"uri": 5}}
    assert await world.run() == []
    stalled = {c["type"]: c for c in world.cluster.status["conditions"]}["Stalled"]
    assert stalled["reason"] == "InvalidSpec"
    assert "spec.model.uri" in stalled["message"]


async def test_that_a_spec_cannot_be_read_is_said_though_the_api_server_was_away() -> None:
    world = scaling_world(1)
    assert world.cluster.observed is not None
    world.cluster.observed.owner["spec"] = {"model": {"uri": 5}}
    world.cluster.refuse_status = ApiError(503, "ServiceUnavailable", "not now")
    await world.run()
    assert world.again == Settings().autoscale_interval
    world.cluster.refuse_status = None
    await world.run()
    assert world.again is None
    assert conditions_of(world)["Stalled"] == ("True", "InvalidSpec")


async def test_a_resource_that_is_gone_is_forgotten() -> None:
    world = scaling_world(1)
    await world.run()
    world.cluster.observed = None
    world.reconciler.touch(KEY)
    assert await world.run() == []
    assert world.again is None


async def test_the_status_stays_small_at_a_hundred_replicas() -> None:
    given = k.spec(autoscaling={"maxReplicas": 100})
    world = World(given, k.settled(given, replicas=100, ready=60))
    world.scraper.load = {f"p{n}": reading(waiting=n, running=8) for n in range(60)}
    await world.run()
    assert len(str(world.cluster.status)) < 16 * 1024


async def test_events_tell_of_transitions_once() -> None:
    world = scaling_world(1)
    world.scraper.load = {"p0": reading(waiting=30, running=8)}
    await world.reconciler.process(KEY)
    events = [w[1] for w in world.cluster.writes if w[0] == "event"]
    assert events == ["Ready", "Scaling"]
    world.cluster.writes = []
    world.now += 5
    await world.reconciler.process(KEY)
    assert [w for w in world.cluster.writes if w[0] == "event"] == []


def test_the_fake_lease_stands_for_the_real_one() -> None:
    assert {"held", "writing"} <= set(dir(Lease))


async def test_what_is_remembered_belongs_to_the_uid() -> None:
    """Deleted and made anew under its name at once: count, mark and readings are the new one's own."""
    world = scaling_world(3, window=300)
    await world.run()
    assert world.counted("scrapes") == 3
    fresh = k.deployment(1)
    fresh["metadata"]["uid"] = "another"
    of = k.revision(k.spec())
    assert world.cluster.observed is not None
    owner = k.owner(uid="another") | {"spec": world.cluster.observed.owner["spec"]}
    service, runtime = (
        obj | {"metadata": obj["metadata"] | {"ownerReferences": [{"uid": "another"}]}}
        for obj in (k.service(of), k.runtime(of))
    )
    world.change(
        owner=owner,
        inference_service=service,
        runtimes=(runtime,),
        deployment=fresh,
        pods=(k.pod("q", of, ready=True),),
    )
    assert ("scale", 3) not in await world.run(5)
    assert world.counted("scrapes") == 1
    assert world.cluster.status["autoscaling"]["desired"] == 1


async def test_whatever_the_scaler_raises_the_report_is_written() -> None:
    world = scaling_world(1)

    async def broken(addresses: object) -> dict[str, Reading | str]:
        raise ZeroDivisionError

    world.scraper.read = broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        await world.run()
    assert {c["type"]: c["status"] for c in world.cluster.status["conditions"]}["Ready"] == "True"


async def test_a_refused_status_slows_nothing_and_is_said_once_per_look() -> None:
    """As by a CRD that is older than the operator: 422 for an enum value it does not know."""
    world = scaling_world(1)
    world.cluster.refuse_status = ApiError(422, "Invalid", "unsupported value")
    world.scraper.load = {"p0": reading(waiting=30, running=8)}
    assert await world.run() == [("scale", 4)]
    assert world.again == Settings().autoscale_interval
    world.scraper.load = {}
    await world.run(5)
    tried = world.cluster.status_writes
    await world.run(5)
    assert world.cluster.status_writes == tried


@pytest.mark.parametrize("trouble", [401, 403, 409, 429, 500, 503, 504, None])
async def test_a_status_that_could_not_be_written_just_then_is_written_at_the_next_look(
    trouble: int | None,
) -> None:
    """The same status, word for word: nothing in it has changed when the API server is back."""
    world = scaling_world(1)
    await world.run()
    world.scraper.load = {"p0": "no answer"}
    world.change(pods=())
    failure = Unreachable("gone") if trouble is None else ApiError(trouble, "Trouble", "not now")
    world.cluster.refuse_status = failure
    written = world.cluster.status_writes
    if trouble is None:
        with pytest.raises(Unreachable):
            await world.run(5)
    else:
        await world.run(5)
        assert world.again == Settings().autoscale_interval
    assert world.cluster.status_writes == written + 1
    world.cluster.refuse_status = None
    await world.run(0)
    assert world.cluster.status_writes == written + 2
    assert world.cluster.observed is not None
    assert world.cluster.observed.status == world.cluster.status


async def test_a_status_that_somebody_took_away_is_written_again() -> None:
    world = scaling_world(1)
    await world.run()
    written = world.cluster.status_writes
    assert world.cluster.observed is not None
    owner = {name: value for name, value in world.cluster.observed.owner.items() if name != "status"}
    world.change(owner=owner)
    await world.run(5)
    assert world.cluster.status_writes == written + 1


async def test_what_an_older_crd_drops_is_not_written_at_each_look() -> None:
    world = scaling_world(1)
    world.cluster.drops = ("image", "timeline")
    await world.run()
    written = world.cluster.status_writes
    for _ in range(3):
        await world.run(61)
    assert world.cluster.status_writes == written
    world.scraper.load = {"p0": reading(waiting=30, running=8)}
    await world.run(5)
    assert world.cluster.status_writes == written + 1
    world.cluster.drops = ()  # and its CRD has come
    await world.run(RESAY)
    assert "image" in world.cluster.observed.owner["status"]  # type: ignore[union-attr]


def conditions_of(world: World) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in world.cluster.status["conditions"]}


async def test_events_are_read_only_while_something_stands_still_and_not_at_each_look() -> None:
    world = scaling_world(1)
    await world.run()
    await world.run(600)
    assert world.cluster.asked == []
    waiting = k.pod("p1", k.revision(k.spec()))
    waiting["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ContainerCreating"}}
    world.cluster.told = [
        {
            "type": "Warning",
            "reason": "FailedMount",
            "message": "access denied by server",
            "involvedObject": {"kind": "Pod", "name": "p1"},
        }
    ]
    world.change(pods=(waiting,))
    for _ in range(3):
        await world.run(5)
    assert world.cluster.asked == [("Pod", "p1")]
    assert conditions_of(world)["Ready"] == ("False", "VolumeNotMounted")
    await world.run(30)
    assert world.cluster.asked == [("Pod", "p1")] * 2
    world.change(pods=k.settled(k.spec()).pods)
    await world.run(5)
    assert world.cluster.asked == [("Pod", "p1")] * 2


async def test_an_event_that_comes_late_changes_the_plan() -> None:
    """Nothing but the Event tells that the new pod waits for a disk which one that serves nobody holds."""
    given = k.spec(rollout={"patienceSeconds": 0})
    old, new = k.revision(k.spec(engine={"maxModelLen": 9})), k.revision(given)
    waiting = k.pod("p1", new)
    waiting["status"]["conditions"].append({"type": "PodReadyToStartContainers", "status": "False"})
    waiting["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ContainerCreating"}}
    pods, runtimes = (k.pod("p0", old), waiting), (k.runtime(new), k.runtime(old, name="old"))
    world = World(given, k.settled(given, pods=pods, runtimes=runtimes))
    await world.run()
    assert await world.run(31) == []
    world.cluster.told = [
        {
            "type": "Warning",
            "reason": "FailedAttachVolume",
            "message": 'Multi-Attach error for volume "pv" Volume is already used by pod(s) p0',
            "involvedObject": {"kind": "Pod", "name": "p1"},
        }
    ]
    assert await world.run(31) == [("apply", "InferenceService")]


async def test_an_api_server_that_gives_no_events_is_no_obstacle() -> None:
    world = scaling_world(1)
    waiting = k.pod("p1", k.revision(k.spec()))
    waiting["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ContainerCreating"}}
    world.change(pods=(waiting,))
    world.cluster.refuse_events = ApiError(403, "Forbidden", "no")
    await world.run()
    assert conditions_of(world)["Ready"][0] == "False"


async def test_what_stands_still_is_looked_at_again_though_nothing_changes() -> None:
    """Only time turns waiting into a stall, also where no scaler asks for another look."""
    given = k.spec(autoscaling={"mode": "Disabled"}, replicas=1)
    world = World(given, k.settled(given))
    await world.run()
    assert world.again is None
    world.change(pods=(k.unschedulable("0/1 nodes are available: 1 Insufficient cpu.", k.revision(given)),))
    await world.run(5)
    assert world.again is not None
    assert world.again <= 10


async def test_the_end_of_service_is_a_warning_and_a_wanted_end_is_none() -> None:
    world = scaling_world(1)
    await world.reconciler.process(KEY)
    world.cluster.writes = []
    world.change(pods=(k.crashed("OSError: x", of=k.revision(k.spec())),))
    await world.reconciler.process(KEY)
    assert ("event", "ContainerCrashing") in world.cluster.writes
