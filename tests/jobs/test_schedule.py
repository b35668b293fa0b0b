"""Who is next in line, and with whom."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from jobs.record import JobState, RecordStore
from jobs.schedule import Priority, batch_group, cost
from jobs.settings import CoreSettings
from tests.jobs.samples import a_request, let_lease_expire

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH


def create(
    records: RecordStore,
    count: int,
    priority: Priority = INTERACTIVE,
    owner: str = "a",
    **changes: object,
) -> list[str]:
    request = a_request(**changes)
    return [records.create(request, owner=owner, priority=priority).id for _ in range(count)]


def take_all(records: RecordStore) -> list[str]:
    """One after the other, in the order of the line."""
    order: list[str] = []
    while taken := records.take("w"):
        order += [record.id for record in taken]
    return order


def test_interactive_goes_before_batch_and_batch_does_not_starve(records: RecordStore) -> None:
    batch = create(records, 30, BATCH)
    started = [records.take("w")[0].id for _ in range(3)]
    flood = create(records, 40)
    order = take_all(records)
    assert started == batch[:3]
    assert order[0] == flood[0]
    first_40 = order[:40]
    assert 3 <= len(set(first_40) & set(batch)) <= 6  # its share is 1 of 9
    assert sorted(order) == sorted(batch[3:] + flood)


def test_an_interactive_job_waits_for_no_more_than_one_of_a_long_batch(
    records: RecordStore,
) -> None:
    create(records, 20, BATCH, owner="a")
    records.take("w")
    (mine,) = create(records, 1, INTERACTIVE, owner="a")
    (theirs,) = create(records, 1, INTERACTIVE, owner="b")
    assert set(take_all(records)[:2]) == {mine, theirs}


def test_callers_share_by_work_and_not_by_the_number_of_jobs(records: RecordStore) -> None:
    large = create(records, 20, owner="a", num_images=4)
    small = create(records, 40, owner="b", num_images=1)
    order = take_all(records)[:25]
    of_a, of_b = len(set(order) & set(large)), len(set(order) & set(small))
    assert of_a + of_b == 25
    assert of_b / of_a == pytest.approx(4, rel=0.35)
    assert cost(a_request(num_images=4)) == 4 * cost(a_request())


def test_who_was_idle_has_saved_up_nothing(records: RecordStore) -> None:
    create(records, 30, owner="a")
    for _ in range(20):
        records.take("w")
    late = create(records, 30, owner="b")
    order = take_all(records)[:20]
    assert 9 <= len(set(order) & set(late)) <= 11


def test_jobs_of_one_group_are_taken_together_as_far_as_there_is_room(
    records: RecordStore,
) -> None:
    same = create(records, 5, prompt="a", seed=1)
    other = create(records, 2, num_inference_steps=11)
    twice = create(records, 1, num_images=2)

    def taken(images: int, pixels: int = 10**9) -> list[str]:
        return [record.id for record in records.take("w", images, pixels)]

    assert taken(3) == same[:3]
    assert taken(16, 3 * 64 * 64) == [same[3], same[4]]  # the pair has 4 × 64 × 64 with them
    assert taken(16) == other[:2]
    assert taken(1) == twice  # the first one is taken whatever it needs
    assert taken(16) == []
    assert all(records.get(job).state is JobState.RUNNING for job in same)


def test_a_job_that_has_lost_a_worker_runs_alone_and_takes_nobody_down(
    records: RecordStore, client: redis.Redis, core_settings: CoreSettings
) -> None:
    from tests.jobs.test_record import FAILURE

    jobs = create(records, 3)
    taken = [records.take("w", 16, 10**9)]
    for record in taken[0]:
        let_lease_expire(client, core_settings, record.id)
        assert records.expire_lease(record.id, FAILURE) is JobState.QUEUED
    fresh = create(records, 2)
    while found := records.take("w", 16, 10**9):
        taken.append(found)
    ids = [[record.id for record in batch] for batch in taken]
    assert ids == [jobs, *([job] for job in jobs), fresh]


def test_a_job_that_was_given_back_still_runs_with_others(records: RecordStore) -> None:
    jobs = create(records, 2)
    for record in records.take("w", 16, 10**9):
        records.release(record.id, record.attempt)
    assert [record.id for record in records.take("w", 16, 10**9)] == jobs


def test_a_group_is_what_can_share_a_sampler_batch() -> None:
    control = {"head": "tiny/pose", "weight": 0.5, "span": (0, 0.5)}
    pose = {"people": (), "aspect_ratio": 1.0}

    def group(**changes: object) -> str:
        return batch_group(a_request(**changes))

    guided = group(task="spatial", controls=({**control, "pose": pose},))
    assert group() == group(prompt="another", seed=9, num_images=3, output={"format": "webp"})
    different = [
        group(),
        group(width=128),
        group(guidance_scale=3.0),
        group(eta=1.0),
        group(output={"evolution_steps": [1]}),
        guided,
    ]
    assert len(set(different)) == len(different)
    heavier = {**control, "weight": 0.9, "pose": pose}
    assert guided == group(task="spatial", controls=(heavier,))


def test_an_interactive_job_takes_no_batch_jobs_with_it(records: RecordStore) -> None:
    batch = create(records, 3, BATCH)
    records.take("w")  # so that a turn has passed
    (mine,) = create(records, 1)
    assert [record.id for record in records.take("w", 16, 10**9)] == [mine]
    (another,) = create(records, 1)
    create(records, 1, num_images=4)
    order = [record.id for record in records.take("w", 16, 10**9)]
    assert order[0] == another
    assert not set(order) & set(batch)


def test_of_many_workers_each_job_goes_to_one(records: RecordStore) -> None:
    jobs = create(records, 60)
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda n: records.take(f"w{n}", 4, 10**9), range(40)))
    ids = [record.id for batch in taken for record in batch]
    assert sorted(ids) == sorted(jobs)


def test_the_same_call_sent_twice_takes_once(records: RecordStore) -> None:
    create(records, 3)
    arguments = ("w", "nonce", 20_000, 2, 10**9)
    first = records._transitions.run("TAKE", "", *arguments)
    assert records._transitions.run("TAKE", "", *arguments) == first
    assert records.counts()[JobState.RUNNING] == 2


def test_a_job_that_comes_back_keeps_its_turn(
    records: RecordStore, client: redis.Redis, core_settings: CoreSettings
) -> None:
    jobs = create(records, 4)
    (first,) = records.take("w")
    records.release(first.id, first.attempt)
    assert [record.id for record in records.take("w")] == [jobs[0]]
    let_lease_expire(client, core_settings, jobs[0])
    from tests.jobs.test_record import FAILURE

    records.expire_lease(jobs[0], FAILURE)
    assert take_all(records) == jobs


def test_nothing_is_left_of_the_line(
    records: RecordStore, client: redis.Redis, core_settings: CoreSettings
) -> None:
    jobs = create(records, 3, BATCH)
    records.request_cancel(jobs[1])
    records.start(jobs[0], "w")
    assert [record.id for record in records.take("w")] == [jobs[2]]
    assert records.take("w") == []
    prefix = core_settings.redis_prefix
    assert client.keys(f"{prefix}:line*") == []
    create(records, 1, owner="b")
    records.take("w")
    assert client.zcard(f"{prefix}:flows") <= 2
