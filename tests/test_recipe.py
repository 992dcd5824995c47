"""The three stages on real digits, in seconds; most in float64, where equal means equal."""

import itertools
from dataclasses import replace

import pytest
import torch

from trainers.checkpoint import read_payload, write_payload
from trainers.config import FactorizationConfig, MethodConfig, ModelConfig, TrainingConfig
from trainers.cost import measure_cost
from trainers.data import DataConfig, load_test
from trainers.errors import CheckpointError, NonFiniteError
from trainers.evaluation import evaluate_split
from trainers.layers import svd_layers
from trainers.models import ModelSpec
from trainers.recipe import MODEL_FILE, Setting, compress, evaluate_model_file, finetune, pretrain, train_dense
from trainers.saved_model import load_model

METHOD = MethodConfig(decomposition="spatial", regularizer="hoyer", strength=0.05, energy=0.2)


@pytest.fixture
def setting(digits):
    training = TrainingConfig(
        batch_size=64, pretrain_epochs=3, epochs=3, learning_rate=2e-3, augmentation="crop_flip", dtype="float64"
    )
    return Setting(ModelSpec(ModelConfig("tiny"), digits.sample_shape, digits.num_classes), digits, training)


def stages(setting, folder):
    """The generators of all four kinds of run, each in a folder of its own below `folder`."""
    return {
        "dense": lambda: train_dense(setting, 3, folder / "dense"),
        "pretrain": lambda: pretrain(setting, METHOD, folder / "pretrain"),
        "compress": lambda: compress(setting, METHOD, folder / "pretrain/model.pt", folder / "compress"),
        "finetune": lambda: finetune(setting, METHOD, 3, folder / "compress/model.pt", folder / "finetune"),
    }


def run_all(setting, folder):
    return {name: list(start()) for name, start in stages(setting, folder).items()}


def metrics(results):
    return [result.metrics for result in results]


def test_the_three_stages_learn_prune_and_recover(setting, tmp_path, digits):
    longer = {"pretrain_epochs": 6, "epochs": 6, "dtype": "float32", "augmentation": "none"}
    results = run_all(replace(setting, training=replace(setting.training, **longer)), tmp_path)
    assert [result.epoch for result in results["pretrain"]] == [1, 2, 3, 4, 5, 6]
    assert results["pretrain"][-1].metrics["val_accuracy"] > 0.8
    assert results["pretrain"][-1].metrics["macs_ratio"] == 1
    last, tuned = results["compress"][-1].metrics, results["finetune"][-1].metrics
    assert last["macs_ratio"] < 0.9
    assert (tuned["macs"], tuned["params"], tuned["rank_ratio"]) == (last["macs"], last["params"], last["rank_ratio"])
    assert tuned["val_accuracy"] > 0.9
    saved = load_model(tmp_path / "finetune/model.pt")
    cost = measure_cost(saved.model, digits.sample_shape)
    assert (cost.macs, cost.params) == (tuned["macs"], tuned["params"])
    assert evaluate_split(saved.model, digits)["accuracy"] == tuned["val_accuracy"]
    assert not svd_layers(saved.model)
    test = load_test(DataConfig("digits"), digits)
    scores = evaluate_model_file(tmp_path / "finetune/model.pt", test, torch.device("cpu"))
    assert scores["accuracy"] > 0.85


def test_metrics_are_complete(setting, tmp_path):
    results = run_all(setting, tmp_path)
    common = {
        "train_loss",
        "learning_rate",
        "val_accuracy",
        "val_top5_accuracy",
        "val_macro_f1",
        "val_loss",
        "macs",
        "flops",
        "macs_ratio",
        "params",
        "params_ratio",
    }
    ranks = {"rank_ratio", "rank/0", "rank/3", "rank/6", "rank/11"}
    expected = {
        "dense": common,
        "pretrain": common | {"orthogonality_error"},
        "compress": common | ranks | {"orthogonality_error"},
        "finetune": common | ranks,
    }
    assert {name: set(results[name][0].metrics) for name in results} == expected


def test_same_seed_gives_bit_identical_results_and_another_seed_does_not(setting, tmp_path):
    first, second = run_all(setting, tmp_path / "a"), run_all(setting, tmp_path / "b")
    assert all(metrics(first[name]) == metrics(second[name]) for name in first)
    other = replace(setting, training=replace(setting.training, seed=1))
    assert metrics(pretrain(other, METHOD)) != metrics(first["pretrain"])


@pytest.mark.parametrize("stop_after", [1, 2, 3])
@pytest.mark.parametrize("name", ["dense", "pretrain", "compress", "finetune"])
def test_an_interrupted_stage_resumes_to_the_uninterrupted_result(setting, tmp_path, name, stop_after):
    whole = run_all(setting, tmp_path / "whole")
    folder = tmp_path / "cut"
    starts = stages(setting, folder)
    for earlier in itertools.takewhile(lambda key: key != name, starts):
        list(starts[earlier]())
    generator = starts[name]()
    for _ in range(stop_after):
        next(generator)
    generator.close()
    assert (folder / name / "checkpoint.pt").exists()
    assert not (folder / name / "model.pt").exists()
    torch.manual_seed(12345)  # another process's state
    resumed = list(starts[name]())
    assert [result.replayed for result in resumed] == [epoch <= stop_after for epoch in (1, 2, 3)]
    assert [result.judged for result in resumed] == [epoch < stop_after for epoch in (1, 2, 3)]
    assert metrics(resumed) == metrics(whole[name])
    a, b = (load_model(tmp_path / part / name / "model.pt").model.state_dict() for part in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not (folder / name / "checkpoint.pt").exists()


def test_a_finished_stage_yields_its_record_and_trains_nothing(setting, tmp_path):
    first = list(pretrain(setting, METHOD, tmp_path))
    changed = (tmp_path / "model.pt").stat().st_mtime_ns
    again = list(pretrain(setting, METHOD, tmp_path))
    assert metrics(again) == metrics(first)
    assert all(result.replayed and result.judged for result in again)
    assert (tmp_path / "model.pt").stat().st_mtime_ns == changed


def test_a_checkpoint_of_another_configuration_is_refused_with_what_differs(setting, tmp_path):
    generator = pretrain(setting, METHOD, tmp_path)
    next(generator)
    generator.close()
    other = replace(setting, training=replace(setting.training, learning_rate=1e-4))
    with pytest.raises(CheckpointError, match=r"learning_rate.*0\.002.*0\.0001"):
        list(pretrain(other, METHOD, tmp_path))


def test_a_stage_that_starts_from_another_model_or_data_is_another_configuration(setting, tmp_path):
    run_all(setting, tmp_path / "a")
    other = replace(setting, training=replace(setting.training, seed=1))
    list(pretrain(other, METHOD, tmp_path / "b"))
    with pytest.raises(CheckpointError, match="start: "):
        list(compress(setting, METHOD, tmp_path / "b/model.pt", tmp_path / "a/compress"))
    fewer = replace(setting, data=replace(setting.data, train_rows=setting.data.train_rows[:-1]))
    with pytest.raises(CheckpointError, match="data: "):
        list(pretrain(fewer, METHOD, tmp_path / "a/pretrain"))


def test_a_damaged_checkpoint_is_one_clear_error(setting, tmp_path):
    generator = pretrain(setting, METHOD, tmp_path)
    next(generator)
    generator.close()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged or foreign"):
        list(pretrain(setting, METHOD, tmp_path))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(setting, tmp_path, caplog):
    whole = list(pretrain(setting, METHOD, tmp_path / "whole"))
    generator = pretrain(setting, METHOD, tmp_path / "cut")
    next(generator)
    next(generator)
    generator.close()
    path = tmp_path / "cut/checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    resumed = list(pretrain(setting, METHOD, tmp_path / "cut"))
    assert "passed over" in caplog.text
    assert [result.replayed for result in resumed] == [True, False, False]
    assert metrics(resumed) == metrics(whole)
    assert [file.name for file in (tmp_path / "cut").iterdir()] == ["model.pt"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_checkpoints_are_kept_and_the_latest_good_one_is_read(setting, tmp_path, keep):
    longer = replace(setting, training=replace(setting.training, pretrain_epochs=6), checkpoints=keep)
    generator = pretrain(longer, METHOD, tmp_path)
    for _ in range(5):
        next(generator)
    generator.close()
    (tmp_path / ".checkpoint.pt.1234.partial").write_bytes(b"of a process that was killed")
    places = [tmp_path / name for name in ("checkpoint.pt", "checkpoint.before.pt", "checkpoint.before2.pt")[:keep]]
    assert sorted(tmp_path.glob("checkpoint*")) == sorted(places)
    assert [len(read_payload(place, "checkpoint")["history"]) for place in places] == [5, 4, 3][:keep]
    for place in places[:-1]:
        place.write_bytes(place.read_bytes()[:1000])
    resumed = list(pretrain(replace(longer, checkpoints=1), METHOD, tmp_path))
    assert sum(result.replayed for result in resumed) == 6 - keep
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("name", ["dense", "pretrain"])
def test_a_loss_that_is_not_finite_ends_the_training_by_name(setting, tmp_path, name):
    hot = replace(setting, training=replace(setting.training, learning_rate=1e30, dtype="float32"))
    with pytest.raises(NonFiniteError, match=r"loss must stay finite.*epoch 1.*lower learning_rate"):
        list(stages(hot, tmp_path)[name]())
    assert not (tmp_path / name / "model.pt").exists()


def test_stage_two_needs_a_start_of_its_decomposition(setting, tmp_path):
    list(pretrain(setting, METHOD, tmp_path))
    with pytest.raises(CheckpointError, match="must be in the form .*'channel'.*but is .*'spatial'"):
        list(compress(setting, replace(METHOD, decomposition="channel"), tmp_path / "model.pt"))
    with pytest.raises(CheckpointError, match="there is none"):
        list(compress(setting, METHOD, tmp_path / "nothing.pt"))


def test_layers_left_out_stay_dense_through_all_stages(setting, tmp_path):
    kept = replace(setting, factorization=FactorizationConfig(exclude=("0", "11")))
    results = run_all(kept, tmp_path)
    assert {key for key in results["finetune"][0].metrics if key.startswith("rank/")} == {"rank/3", "rank/6"}
    model = load_model(tmp_path / "finetune/model.pt").model
    assert type(model[0]) is torch.nn.Conv2d
    assert type(model[11]) is torch.nn.Linear


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 1e-3, "schedule": "step"},
        {"optimizer": "adamw", "weight_decay": 0.01, "schedule": "constant", "label_smoothing": 0.1},
        {"dtype": "bfloat16"},
    ],
)
def test_other_optimizers_schedules_and_types_train(setting, tmp_path, changes):
    other = replace(
        setting, training=replace(setting.training, **{"dtype": "float32", "augmentation": "none", **changes})
    )
    results = list(pretrain(other, METHOD, tmp_path))
    assert results[-1].metrics["train_loss"] < results[0].metrics["train_loss"]
    assert results[-1].metrics["val_accuracy"] > 0.5
    assert load_model(tmp_path / "model.pt").model[0].s.dtype == torch.float32


def test_a_model_file_of_another_kind_or_version_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    write_payload(path, "checkpoint", {})
    with pytest.raises(CheckpointError, match="must be a model file, but is a checkpoint file"):
        load_model(path)
    torch.save({"format": "rankfront", "version": 99, "kind": "model"}, path)
    with pytest.raises(CheckpointError, match="format version 2, but has 99"):
        load_model(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="written by something else"):
        load_model(path)
    write_payload(path, "model", {"spec": {}})
    with pytest.raises(CheckpointError, match="content does not fit"):
        load_model(path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_stages_run_on_a_gpu(setting, tmp_path):
    on_gpu = replace(setting, device=torch.device("cuda"), training=replace(setting.training, dtype="float32"))
    results = run_all(on_gpu, tmp_path)
    assert results["finetune"][-1].metrics["val_accuracy"] > 0.8


def test_stage_one_is_shared_by_what_it_depends_on(setting, tmp_path):
    config, store = MethodConfig(strength=0.1), tmp_path / "store"
    first = list(pretrain(setting, config, tmp_path / "a", store))
    (file,) = store.iterdir()
    again = list(pretrain(setting, replace(config, strength=0.5), tmp_path / "b", store))  # the strength is stage 2's
    assert [result.replayed for result in again] == [True] * len(first)
    assert [result.metrics for result in again] == [result.metrics for result in first]
    assert (tmp_path / "b" / MODEL_FILE).read_bytes() == file.read_bytes()
    other = replace(setting, training=replace(setting.training, seed=1))
    assert not any(result.replayed for result in pretrain(other, config, tmp_path / "c", store))
    assert len(list(store.iterdir())) == 2
    file.write_bytes(b"damaged")
    trained = list(pretrain(setting, config, tmp_path / "d", store))
    assert not any(result.replayed for result in trained)
    assert [result.metrics for result in trained] == [result.metrics for result in first]
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    assert len(list(pretrain(setting, config, tmp_path / "e", blocked))) == len(first)


def test_fine_tuning_that_does_not_get_better_ends_early_also_when_it_was_cut_off(setting, tmp_path):
    list(pretrain(setting, METHOD, tmp_path / "1"))
    idle = replace(setting, training=replace(setting.training, learning_rate=1e-12))  # the accuracy never changes

    def tune(folder, **options):
        return finetune(idle, METHOD, 6, tmp_path / "1/model.pt", tmp_path / folder, **options)

    whole = list(tune("whole", patience=2))
    assert [result.epoch for result in whole] == [1, 2, 3]
    cut_off = tune("cut", patience=2)
    for _ in range(3):
        next(cut_off)
    cut_off.close()
    assert metrics(list(tune("cut", patience=2))) == metrics(whole)
    assert [result.replayed for result in tune("cut", patience=2)] == [True] * 3
    assert len(list(tune("patient"))) == 6


def test_a_stage_that_gets_worse_keeps_its_best_epoch_also_when_it_was_cut_off(setting, tmp_path, digits):
    """Fine-tuning at a rate that destroys the network: what is kept is the cut; at one that swings, the best epoch."""
    list(pretrain(setting, METHOD, tmp_path / "1"))
    for folder, optimizer, rate in (("ruined", "adam", 1.0), ("swinging", "sgd", 0.03)):
        wild = replace(
            setting, training=replace(setting.training, optimizer=optimizer, learning_rate=rate, schedule="constant")
        )

        def tune(place, wild=wild):
            return finetune(wild, METHOD, 4, tmp_path / "1/model.pt", tmp_path / place)

        whole = list(tune(folder))
        last = whole[-1].metrics
        accuracies = [last["start_val_accuracy"], *(result.metrics["val_accuracy"] for result in whole[:-1])]
        assert last["val_accuracy"] >= max(accuracies)
        saved = load_model(tmp_path / folder / MODEL_FILE)
        assert evaluate_split(saved.model, digits, "float64")["accuracy"] == last["val_accuracy"]
        assert saved.history[-1]["metrics"] == last
        if folder == "ruined":
            assert last["best_epoch"] == 0
            assert last["val_accuracy"] == last["start_val_accuracy"]
        elif last["best_epoch"] < 4:
            assert last["val_accuracy"] == accuracies[int(last["best_epoch"])]
        cut_off = tune(folder + " again")
        for _ in range(2):
            next(cut_off)
        cut_off.close()
        assert metrics(list(tune(folder + " again"))) == metrics(whole)
        again = load_model(tmp_path / f"{folder} again" / MODEL_FILE)
        for name, value in again.model.state_dict().items():
            assert torch.equal(value, saved.model.state_dict()[name])


def test_a_batch_in_parts_makes_the_same_step(digits, tmp_path):
    """Without BatchNorm; 1,150 training images in batches of 100, in parts of 34 and 33."""
    training = TrainingConfig(batch_size=100, pretrain_epochs=2, dtype="float64", label_smoothing=0.1)
    model = ModelSpec(ModelConfig("mlp", hidden=(20,)), digits.sample_shape, digits.num_classes)
    whole = Setting(model, digits, training)
    models = []
    for number, setting in enumerate((whole, replace(whole, accumulation=3))):
        results = list(pretrain(setting, METHOD, tmp_path / str(number)))
        models.append((results, load_model(tmp_path / str(number) / MODEL_FILE).model.state_dict()))
    (once, weights), (parts, same) = models
    assert [result.metrics.pop("accumulation") for result in parts] == [3, 3]
    for one, other in zip(once, parts, strict=True):
        assert other.metrics == pytest.approx(one.metrics, rel=1e-9)
    for name, tensor in weights.items():
        torch.testing.assert_close(same[name], tensor, rtol=1e-9, atol=1e-12)
