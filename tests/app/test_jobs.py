"""One job at a time, the next ones in a queue, and what is kept of each."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from analysis.errors import Cancelled
from analysis.study import load_study
from app import jobs


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "this does not happen"
        time.sleep(0.005)


@pytest.fixture
def registry(tmp_path):
    return jobs.Registry(tmp_path / "jobs")


@pytest.fixture
def gate():
    """A work that waits for its release, and heeds a wish to stop."""

    class Gate:
        def __init__(self):
            self.open, self.order, self.at_once, self.most = threading.Event(), [], 0, 0

        def work(self, name):
            def steps(report, cancelled):
                self.at_once += 1
                self.most = max(self.most, self.at_once)
                self.order.append(name)
                try:
                    while not self.open.wait(0.005):
                        if cancelled():
                            raise Cancelled("stopped")
                finally:
                    self.at_once -= 1

            return steps

    return Gate()


def start(registry, gate, tmp_path, *names):
    return [registry.start(name, name, gate.work(name), tmp_path / name) for name in names]


def test_jobs_run_one_after_another_in_the_order_they_were_asked_for(registry, gate, tmp_path):
    first, second, third = start(registry, gate, tmp_path, "one", "two", "three")
    wait_until(lambda: gate.order == ["one"])
    assert registry.running() is first
    assert [job.key for job in registry.waiting()] == ["two", "three"]
    assert [registry.place(job.key) for job in (first, second, third)] == [0, 1, 2]
    gate.open.set()
    wait_until(lambda: third.state == jobs.DONE)
    assert gate.order == ["one", "two", "three"]
    assert gate.most == 1


def test_the_same_question_is_the_same_job_also_while_it_waits(registry, gate, tmp_path):
    first, second = start(registry, gate, tmp_path, "one", "two")
    assert start(registry, gate, tmp_path, "one", "two") == [first, second]
    gate.open.set()


def test_a_job_that_waits_is_cancelled_without_having_run(registry, gate, tmp_path):
    _, second, third = start(registry, gate, tmp_path, "one", "two", "three")
    registry.cancel("two")
    assert second.state == jobs.CANCELLED
    assert registry.place("three") == 1
    gate.open.set()
    wait_until(lambda: third.state == jobs.DONE)
    assert gate.order == ["one", "three"]
    assert jobs.Registry(registry.folder).find("two").state == jobs.CANCELLED


def test_cancelling_the_running_job_lets_the_next_one_begin(registry, gate, tmp_path):
    first, second = start(registry, gate, tmp_path, "one", "two")
    wait_until(lambda: gate.order == ["one"])
    registry.cancel("one")
    wait_until(lambda: first.state == jobs.CANCELLED)
    assert second.state == jobs.RUNNING
    gate.open.set()


def test_a_failing_job_lets_the_next_one_begin(registry, gate, tmp_path):
    def fail(report, cancelled):
        raise ValueError("the images are gone")

    failed = registry.start("bad", "bad", fail, tmp_path / "bad")
    (second,) = start(registry, gate, tmp_path, "two")
    gate.open.set()
    wait_until(lambda: second.state == jobs.DONE)
    assert failed.message == "The images are gone."


def test_what_waits_when_the_server_ends_is_interrupted(registry, gate, tmp_path):
    start(registry, gate, tmp_path, "one", "two")
    later = jobs.Registry(registry.folder)
    assert later.find("one").state == later.find("two").state == jobs.INTERRUPTED
    assert later.running() is None
    gate.open.set()


def test_no_more_wait_than_anybody_would(registry, gate, tmp_path):
    start(registry, gate, tmp_path, *map(str, range(jobs.MOST_QUEUED + 1)))
    with pytest.raises(jobs.BusyError, match="20 jobs are waiting already; cancel one"):
        start(registry, gate, tmp_path, "more")
    gate.open.set()


def test_an_answer_that_still_improves_can_be_seen_until_the_end(registry, tmp_path, make_study):
    go = threading.Event()

    def work(report, cancelled):
        report.publish(make_study())
        go.wait(10)
        return make_study()

    job = registry.start("one", "one", work, tmp_path / "one.study.json")
    wait_until(lambda: job.num_partials == 1)
    assert job.partial.title == make_study().title
    go.set()
    wait_until(lambda: job.state == jobs.DONE)
    assert job.partial is None
    assert load_study(tmp_path / "one.study.json").title == make_study().title


def test_a_stopped_study_is_kept_apart_until_the_whole_one_is_there(registry, tmp_path, make_study):
    whole, stopped = tmp_path / "whole.study.json", tmp_path / "stopped.study.json"
    study = make_study()
    part = replace(
        study, provenance=replace(study.provenance, stopped="stopped after 3 of 8 batches")
    )
    job = registry.start("one", "one", lambda report, cancelled: part, whole, stopped)
    wait_until(lambda: not job.is_open)
    assert (job.state, job.message) == (jobs.CANCELLED, "stopped after 3 of 8 batches")
    assert load_study(stopped).provenance.stopped
    assert not whole.exists()
    job = registry.start("one", "one", lambda report, cancelled: study, whole, stopped)
    wait_until(lambda: job.state == jobs.DONE)
    assert whole.exists()
    assert not stopped.exists()
