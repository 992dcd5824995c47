"""Calls in the background run in order, all of them, and no failure is lost."""

import threading
import time

import pytest

from orchestrator.background import Background
from orchestrator.storage import storage_errors, storage_problem
from trainers.errors import SweepError


@pytest.mark.parametrize("threaded", [True, False])
def test_calls_run_in_the_order_in_which_they_are_handed_in(threaded):
    found = []
    with Background(threaded=threaded) as background:
        futures = [background.submit(lambda i=i: found.append(i) or i) for i in range(100)]
    assert found == [future.result() for future in futures] == list(range(100))


def test_a_slow_call_does_not_hold_up_the_one_who_hands_it_in():
    release = threading.Event()
    with Background() as background:
        future = background.submit(release.wait, 60)
        assert not future.done()
        release.set()
    assert future.result() is True


def test_without_a_thread_a_call_is_over_when_it_has_been_handed_in():
    background = Background(threaded=False)
    assert background.submit(threading.get_ident).result() == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        background.submit(lambda: 1 // 0)


def run(*calls, leave_by=None):
    """Hand the calls in, in one block."""
    with Background() as background:
        for call in calls:
            background.submit(call)
        if leave_by is not None:
            raise leave_by


def test_the_first_failure_is_raised_at_the_end_and_nothing_after_it_is_run():
    found, release = [], threading.Event()

    def fail():
        release.wait(60)
        raise OSError("disk full")

    background = Background()
    background.submit(fail)
    background.submit(found.append, 1)  # handed in before the failure
    release.set()
    with pytest.raises(OSError, match="disk full"):
        background.__exit__(None, None, None)
    assert not found


def test_a_failure_is_raised_by_the_next_submit():
    background = Background()
    with pytest.raises(ZeroDivisionError):
        background.submit(lambda: 1 // 0).result()
    with pytest.raises(ZeroDivisionError):
        background.submit(print)


def test_what_has_been_handed_in_is_done_although_the_block_is_left_by_an_error():
    found = []
    with pytest.raises(KeyboardInterrupt):
        run(lambda: time.sleep(0.05), lambda: found.append(1), leave_by=KeyboardInterrupt())
    assert found == [1]


def test_waiting_is_for_all_that_was_handed_in():
    found = []
    with Background() as background:
        background.submit(lambda: time.sleep(0.05) or found.append(1))
        background.wait()
        assert found == [1]


def refuse():
    raise SweepError("the search space refused 100 draws")


def in_result(background):
    background.submit(refuse).result()


def in_next_submit(background):
    background.submit(refuse)
    time.sleep(0.05)
    background.submit(print)


def wrapped(background):
    try:
        in_next_submit(background)
    except SweepError as error:
        raise RuntimeError("as Ray Tune wraps what a callback raises") from error


def at_the_end(background):
    background.submit(refuse)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("block", [in_result, in_next_submit, wrapped, at_the_end])
def test_a_failure_comes_out_of_the_block_as_it_is_wherever_it_was_met(block, tmp_path):
    with (
        pytest.raises(SweepError, match="refused 100 draws") as caught,
        storage_errors(tmp_path),
        Background() as background,
    ):
        block(background)
    assert storage_problem(caught.value) is None


def test_a_full_disk_is_found_in_a_circle_of_causes():
    full, other = OSError(28, "No space left on device"), RuntimeError("wrapped")
    other.__cause__, full.__context__ = full, other
    assert "No space left" in storage_problem(other)
