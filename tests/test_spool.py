"""Events on their way to MLflow: given back in order, once, whatever ended who wrote them."""

import pytest

from orchestrator.tracking.spool import Event, Spool
from trainers.errors import SweepError


def test_a_damaged_line_is_one_clear_error(tmp_path):
    (tmp_path / "events.jsonl").write_text("nonsense\n")
    with pytest.raises(SweepError, match="must be lines of JSON"):
        Spool(tmp_path)


def test_a_spool_gives_back_what_was_written_in_order_and_only_once(tmp_path):
    spool = Spool(tmp_path)
    events = [Event(f"trial-{number:04d}", "metrics", {"step": 1, "values": {"x": 0.5}}, 1.5) for number in range(5)]
    for event in events[:3]:
        spool.append(event)
    first, end, _ = spool.read()
    assert first == events[:3]
    spool.delivered(end)
    for event in events[3:]:
        spool.append(event)
    assert spool.count() == 2
    spool.close()
    again = Spool(tmp_path)  # as after a kill
    assert again.read()[0] == events[3:]
    again.delivered(again.read()[1])
    again.close()
    assert (tmp_path / "events.jsonl").stat().st_size == 0
    assert Spool(tmp_path).read() == ([], 0, False)


def test_a_line_cut_off_by_a_kill_is_left_out(tmp_path):
    spool = Spool(tmp_path)
    spool.append(Event("trial-0000", "end", {"status": "FINISHED"}, 1.0))
    spool.close()
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"run": "trial-0001", "ki')
    again = Spool(tmp_path)
    again.append(Event("trial-0002", "end", {"status": "FINISHED"}, 2.0))
    assert [event.run for event in again.read()[0]] == ["trial-0000", "trial-0002"]


def test_a_damaged_position_is_one_clear_error(tmp_path):
    (tmp_path / "delivered.json").write_text("{")
    with pytest.raises(SweepError, match="must be readable JSON.*remove it"):
        Spool(tmp_path)
