"""Two workers train what one does with the same batches; sums are taken in another order, and nothing else."""

import copy
import socket

import pytest
import torch
from small_networks import SHAPE, attached
from test_step import images_of
from torch import nn
from workers import Pair

from trainers.batches import Share, training_batches
from trainers.config import MethodConfig, ModelConfig, TrainingConfig
from trainers.distillation import Distillation
from trainers.distributed import listen, require_images
from trainers.errors import ConfigError, NonFiniteError
from trainers.evaluation import evaluate_split
from trainers.loop import Evaluation, Stage, each_alone, train
from trainers.models import ModelSpec, build_model
from trainers.optimizers import DTYPES

SVD = {"method": "svd_training", "regularizer": "hoyer", "strength": 0.1}
METHODS = [
    {**SVD, "decomposition": "spatial", "strength_schedule": "warmup", "orthogonality_period": 2},
    {**SVD, "retraction_period": 3, "spectrum_learning_rate": 2.0},
    {"method": "truncated_svd", "regularizer": "spectral_hoyer_square"},
    {"method": "trp", "compression_period": 2},
    {"method": "lc", "compression_period": 2},
    {"method": "lorita"},
    {"method": "cuttlefish", "plateau_tolerance": 1.0},
    {"method": "dense"},
]


@pytest.fixture(scope="module")
def pair():
    found = Pair()
    yield found
    found.close()


def trained(config, pair=None, model="mlp", teacher=None, epochs=2, accumulation=1, **training):
    """Each epoch's metrics, and the network after the last."""
    training = TrainingConfig(
        **{"dtype": "float64", "augmentation": "crop_flip", "batch_size": 32, "weight_decay": 0.01, **training}
    )
    method, data = fresh(config, model, training.dtype), images_of(148)
    distillation = None if teacher is None else Distillation(fresh(teacher, model).model, 0.5, 2.0)
    stage = Stage("test", epochs, training, {}, accumulation=accumulation)

    def evaluate(_):
        return Evaluation({**evaluate_split(method.model, data, training.dtype), **method.metrics()})

    steps = train(method, data, stage, evaluate, distillation)
    if pair is None:
        results = list(each_alone(steps))
    else:
        pair.spec = spec_of(model)
        results = list(each_alone(steps, pair.train))
    metrics = [{key: value for key, value in result.metrics.items() if key != "accumulation"} for result in results]
    return metrics, method.model.state_dict()


def spec_of(model):
    return ModelSpec(ModelConfig(model, hidden=(12,)), SHAPE, 5)


def fresh(config, model, dtype="float64"):
    torch.manual_seed(3)
    network = build_model(spec_of(model)).to(DTYPES[dtype])
    if model == "tiny":
        network[1].momentum = None  # its running statistics are the plain mean over batches
    return attached(MethodConfig(**config), network)


def require_close(one, other, tolerance):
    """Validation loss, scores and weights; of losses in training the sum over an epoch is held in float32."""
    for found, expected in zip(one[0], other[0], strict=True):
        assert found.pop("train_loss") == pytest.approx(expected.pop("train_loss"), rel=max(tolerance, 1e-6))
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        torch.testing.assert_close(tensor, other[1][name], rtol=tolerance, atol=tolerance)


class TestTwoWorkersAreOne:
    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_svd_training_with_batch_norm_and_augmentation(self, pair, optimizer):
        """Losses with a sparsity and an orthogonality penalty, running statistics, weights: to 1e-9 in float64."""
        alone = trained(SVD, None, "tiny", optimizer=optimizer, epochs=3)
        together = trained(SVD, pair, "tiny", optimizer=optimizer, epochs=3)
        assert pair.others.loss == together[0][-1]["train_loss"]
        require_close(together, alone, 1e-9)

    def test_in_float32(self, pair):
        settings = {"dtype": "float32", "optimizer": "sgd", "learning_rate": 0.01}
        require_close(trained(SVD, pair, "tiny", **settings), trained(SVD, None, "tiny", **settings), 1e-4)

    @pytest.mark.parametrize("method", METHODS, ids=lambda method: method["method"])
    def test_every_method(self, pair, method):
        require_close(trained(method, pair, "tiny"), trained(method, None, "tiny"), 1e-9)

    @pytest.mark.parametrize("training", [{"batch_size": 33}, {"batch_size": 500}, {"label_smoothing": 0.1}], ids=str)
    def test_shares_that_differ_by_an_image_are_weighted(self, pair, training):
        require_close(trained(SVD, pair, "tiny", **training), trained(SVD, None, "tiny", **training), 1e-9)

    def test_gradients_that_are_added_up_count_penalties_once(self, pair):
        require_close(trained(SVD, pair, batch_size=33, accumulation=3), trained(SVD, batch_size=33), 1e-9)

    @pytest.mark.parametrize("teacher", [SVD, {"method": "lorita"}], ids=lambda method: method["method"])
    def test_with_a_teacher(self, pair, teacher):
        require_close(trained(SVD, pair, teacher=teacher), trained(SVD, teacher=teacher), 1e-9)

    def test_a_network_is_sent_once(self, pair):
        before = pair.taken
        trained(SVD, pair, epochs=3)
        assert pair.taken == before + 1
        trained({"method": "cuttlefish", "plateau_tolerance": 1.0}, pair, epochs=3)
        assert pair.taken == before + 3  # it puts another one in place

    def test_the_network_is_one_process_again_after_an_epoch(self, pair):
        method, data = fresh(SVD, "tiny"), images_of(148)
        stage = Stage("test", 1, TrainingConfig(dtype="float64", batch_size=64), {})

        def evaluate(_):
            norms = [module for module in method.model.modules() if isinstance(module, nn.BatchNorm2d)]
            assert len(norms) == 3
            assert not any("forward" in vars(norm) for norm in norms)
            copy.deepcopy(method.model).train()(torch.zeros(4, *SHAPE, dtype=torch.float64)).sum().backward()
            return Evaluation({})  # nobody was waited for

        pair.spec = spec_of("tiny")
        assert len(list(each_alone(train(method, data, stage, evaluate), pair.train))) == 1

    def test_a_loss_that_is_not_finite_is_seen_by_all(self, pair):
        with pytest.raises(NonFiniteError, match="loss must stay finite"):
            trained(SVD, pair, learning_rate=1e30, optimizer="sgd")
        assert "NonFiniteError" in pair.others


class TestShares:
    def test_they_are_the_batch(self):
        data = images_of(150)
        whole, *parts = (
            list(training_batches(data, 32, "crop_flip", torch.Generator().manual_seed(1), torch.float64, share))
            for share in (Share(), *(Share(rank, 3) for rank in range(3)))
        )
        assert len(whole) == 4
        for (images, labels), *shares in zip(whole, *parts, strict=True):
            assert [len(part) for _, part in shares] == [11, 11, 10]
            torch.testing.assert_close(torch.cat([part for part, _ in shares]), images, rtol=0, atol=0)
            torch.testing.assert_close(torch.cat([part for _, part in shares]), labels, rtol=0, atol=0)

    def test_a_batch_has_an_image_for_each(self):
        require_images(3, 3)
        with pytest.raises(ConfigError, match=r"batch_size: must be at least the number of workers of a run \(4\)"):
            require_images(3, 4)


def test_workers_meet_on_the_address_that_is_given():
    with listen("127.0.0.1") as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        socket.create_connection(listener.getsockname(), 5).close()
