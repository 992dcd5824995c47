import io
import os
import pickle

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainers.atomic import atomic_file
from trainers.checkpoint import FORMAT, VERSION, read_payload, require_same_config, write_payload
from trainers.errors import CheckpointError
from trainers.optimizers import learning_rate_at, make_optimizer, set_learning_rate


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/rankfront-was-here",)


def test_what_is_written_is_read(tmp_path):
    content = {"tensor": torch.arange(3), "config": {"a": [1, None, "x"], "b": 0.5}}
    write_payload(tmp_path / "deep" / "file.pt", "model", content)
    found = read_payload(tmp_path / "deep" / "file.pt", "model")
    from_memory = read_payload((tmp_path / "deep" / "file.pt").read_bytes(), "model")
    for read in (found, from_memory):
        assert torch.equal(read["tensor"], content["tensor"])
        assert read["config"] == content["config"]
    assert os.listdir(tmp_path / "deep") == ["file.pt"]


def test_an_interrupted_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "file.pt"
    write_payload(path, "model", {"value": 1})

    def interrupted():
        with atomic_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_payload(path, "model")["value"] == 1
    assert os.listdir(tmp_path) == ["file.pt"]


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / "file.pt"
    torch.save({"format": "rankfront", "version": 1, "kind": "model", "x": Malicious()}, path)
    with pytest.raises(CheckpointError, match="damaged or foreign"):
        read_payload(path, "model")
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError, match="damaged or foreign"):
        read_payload(path, "model")
    with pytest.raises(CheckpointError, match="the given content must be a readable model file"):
        read_payload(path.read_bytes(), "model")
    assert not os.path.exists("/tmp/rankfront-was-here")


@pytest.mark.parametrize("keep", [0, 1, 40, 200, -1])
def test_a_truncated_file_is_one_clear_error(tmp_path, keep):
    path = tmp_path / "file.pt"
    write_payload(path, "model", {"tensor": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"file\.pt"):
        read_payload(path, "model")


@given(st.binary(max_size=40))
@example(b"something else")
@example(b"")
def test_foreign_bytes_are_one_clear_error(content):
    with pytest.raises(CheckpointError, match="the given content must be a "):
        read_payload(content, "model")


@settings(max_examples=30)
@given(st.integers(0, 1500), st.integers(1, 255))
def test_a_damaged_file_is_read_whole_or_refused(place, flip):
    """Whatever byte is changed: padding does not matter, and all else is found."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, "kind": "model", "tensor": torch.arange(9)}, buffer)
    damaged = bytearray(buffer.getvalue())
    damaged[place % len(damaged)] ^= flip
    try:
        found = read_payload(bytes(damaged), "model")
    except CheckpointError:
        return
    assert torch.equal(found["tensor"], torch.arange(9))


def test_settings_that_differ_are_named():
    require_same_config("file.pt", {"a": 1}, {"a": 1})
    with pytest.raises(CheckpointError, match="a: 1 there, 2 here, b: None there, 3 here"):
        require_same_config("file.pt", {"a": 1}, {"a": 2, "b": 3})


class TestSchedules:
    def rates(self, **changes):
        from trainers.config import TrainingConfig

        config = TrainingConfig(learning_rate=0.1, **changes)
        return [learning_rate_at(progress / 8, config) for progress in range(8)]

    def test_known_values(self):
        assert self.rates(schedule="constant") == [0.1] * 8
        assert self.rates(schedule="step") == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
        assert self.rates(schedule="step", milestones=(0.25,), decay=0.5) == pytest.approx([0.1] * 2 + [0.05] * 6)
        cosine = self.rates(schedule="cosine")
        assert (cosine[0], cosine[4]) == pytest.approx((0.1, 0.05))
        assert cosine == sorted(cosine, reverse=True)


def test_weight_decay_acts_on_weights_and_singular_values_only():
    from trainers.config import TrainingConfig
    from trainers.surgery import factorize

    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(8, 2)
    )
    factorize(model, "channel", (1, 4, 4))
    model.append(torch.nn.Linear(2, 2))
    groups = make_optimizer(model, TrainingConfig(weight_decay=0.1)).param_groups
    decayed, free = sorted(groups, key=lambda group: -group["weight_decay"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in decayed["params"]} == {"0.s", "3.s", "4.weight"}
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0)


def test_a_scale_multiplies_the_learning_rate_of_its_parameters_alone():
    from trainers.config import TrainingConfig

    model = torch.nn.Linear(3, 2)
    config = TrainingConfig(learning_rate=0.1)
    optimizer = make_optimizer(model, config, {model.bias: 5.0})
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert (rates[id(model.weight)], rates[id(model.bias)]) == (0.1, 0.5)
    set_learning_rate(optimizer, 0.02)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert (rates[id(model.weight)], rates[id(model.bias)]) == pytest.approx((0.02, 0.1))
