"""What every low-rank method is: the hooks that the training loop calls, and `finish`, which cuts.

A method is attached to one network and trains in one of two stages: `prepare` takes the dense network into the form that
is trained, and leaves it at full rank; a later stage goes on from there with the method's own pressure towards low rank.
Each hook does nothing by default. What a method has to remember between epochs, beyond the weights, is in `state`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainers.config import FactorizationConfig, MethodConfig, as_record
from trainers.deploy import PrunedModel, Spectra, prune, rank_problem, stored_spectra
from trainers.errors import ConfigError
from trainers.form import ModelForm, convert
from trainers.layers import svd_layers
from trainers.rank_rules import RULE_SETTINGS
from trainers.rules import unknown_name
from trainers.surgery import decomposable, factorize

ValidationLoss = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Network:
    """What a method needs to know of the network beside its weights."""

    sample_shape: tuple[int, ...]
    factorization: FactorizationConfig = field(default_factory=FactorizationConfig)


def put(new: list[Tensor], place: list[Tensor]) -> list[Tensor]:
    """Return `new`, copied into the tensors of `place` if there are any: a CUDA graph reads those it was captured with."""
    if not place:
        return new
    torch._foreach_copy_(place, new)
    return place


class Method:
    """Base of all methods, and itself the method that adds nothing: training as usual, cut by `rank_rule` in the end.

    `regularizers` are the penalties that it can use, each with its default strength; `default_regularizer` is one of them
    or None. `rank_rule` chooses the ranks; where `owns_rank_rule` is set it is part of the method and cannot be changed.
    `settings` are the fields of MethodConfig that it reads beside `decomposition`, the regularizer's and the rank rule's.
    `ranks_at_cut`: one training can be cut anywhere by the rule's number; not so where ranks are learned.
    `can_continue`: another training may go on from the network of a finished one, which has not decided its ranks.
    """

    regularizers: ClassVar[dict[str, float]] = {}
    default_regularizer: ClassVar[str | None] = None
    rank_rule: ClassVar[str | None] = "energy"
    owns_rank_rule: ClassVar[bool] = False
    settings: ClassVar[tuple[str, ...]] = ()
    ranks_at_cut: ClassVar[bool] = True
    can_continue: ClassVar[bool] = True

    model: nn.Module
    form: ModelForm

    def __init__(self, config: MethodConfig, network: Network) -> None:
        self.config, self.network = self.resolve(config), network

    @classmethod
    def resolve(cls, config: MethodConfig) -> MethodConfig:
        """Return `config` with the method's defaults where it has None."""
        regularizer = config.regularizer or cls.default_regularizer
        strength = cls.regularizers.get(regularizer or "", 0.0) if config.strength is None else config.strength
        return replace(config, regularizer=regularizer, strength=strength, rank_rule=config.rank_rule or cls.rank_rule)

    @classmethod
    def in_force(cls, config: MethodConfig) -> dict[str, Any]:
        """Return the resolved settings that count for this method, as plain values: those that a record should show."""
        record = as_record(cls.resolve(config))
        names = {"method", "decomposition", "rank_rule", "rank_multiple", *cls.settings}
        names |= {*RULE_SETTINGS.get(record["rank_rule"] or "", ())}
        names |= {"regularizer", "strength", "strength_schedule"} if cls.regularizers else set()
        return {name: value for name, value in record.items() if name in names}

    @classmethod
    def stage_one_name(cls, config: MethodConfig) -> str:
        """Return a short name for what `pretraining` returned: one for each form that stage 1 can have."""
        return config.method

    @classmethod
    def problems(cls, config: MethodConfig) -> list[tuple[str, str]]:
        """Return (field, message) for settings that do not go with this method."""
        found = []
        if config.regularizer is not None and config.regularizer not in cls.regularizers:
            if cls.regularizers:
                text = unknown_name(f"regularizer for {config.method}", config.regularizer, cls.regularizers)
            else:
                text = f"must be left out: {config.method} has none, but got {config.regularizer!r}"
            found.append(("regularizer", text))
        if cls.owns_rank_rule and config.rank_rule not in (None, cls.rank_rule):
            own = f"{config.method} chooses ranks itself{f' ({cls.rank_rule})' if cls.rank_rule else ''}"
            found.append(("rank_rule", f"must be left out: {own}, but got {config.rank_rule!r}; or use truncated_svd"))
        return found

    @classmethod
    def pretraining(cls, config: MethodConfig) -> MethodConfig:
        """Return the method of stage 1, reduced to what matters there: equal for trials that can share it."""
        return MethodConfig(method="dense")

    def trained_form(self) -> ModelForm:
        """Return the form in which the network is trained."""
        return ModelForm()

    def prepare(self, model: nn.Module) -> None:
        """Take over a dense network in the form that is trained; its outputs stay equal."""
        form = self.trained_form()
        self.attach(convert(model, form, self.network.sample_shape), form)

    def attach(self, model: nn.Module, form: ModelForm) -> None:
        """Take over a network that is in `form`; call `bind` when it is on its device."""
        self.model, self.form = model, form

    def bind(self) -> None:
        """Look up the tensors that the hooks work on."""

    def learning_rate_scales(self) -> dict[nn.Parameter, float]:
        """Return factors on the learning rate, by parameter; 1 for all others."""
        return {}

    def dense_layers(self) -> dict[str, nn.Module]:
        """Return the layers that are to become low-rank, by module path, of a network that is trained dense.

        Raises ConfigError where there are none.
        """
        found = decomposable(self.model, self.network.sample_shape, self.network.factorization)
        if not found:
            raise ConfigError([("factorization", "must leave at least one layer to decompose, but skips all")])
        return found

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Before epoch `epoch` (from 0) of `epochs`."""

    def loss_weight(self, progress: float) -> float:
        """Return the weight of `loss_term` in the next step's loss, 0 for none; `progress` of the stage is in [0, 1)."""
        return 0.0

    def loss_term(self) -> Tensor:
        """Return what is added to the task's loss, a scalar; by operations on the device alone, and equal at every step."""
        raise NotImplementedError

    def after_backward(self) -> None:
        """Before each step, when the gradients are there; may add those of terms whose derivative has a closed form."""

    def after_step(self, step: int) -> None:
        """After the optimizer's step number `step` of the epoch (from 1)."""

    def end_epoch(self) -> None:
        """After an epoch, before it is evaluated; may put another `model` and `form` in place."""

    def check_budget(self) -> None:
        """Raise ConfigError, before anything is trained, where the rank rule has a budget that no ranks can meet."""
        if "budget" in RULE_SETTINGS.get(self.config.rank_rule or "", ()):
            shapes = self.decomposed_copy("meta")
            rank_problem(shapes, stored_spectra(shapes), self.network.sample_shape).allowance(self.config)

    def finish(
        self, validation_loss: ValidationLoss | None = None, decomposed: tuple[nn.Module, Spectra] | None = None
    ) -> PrunedModel:
        """Return the low-rank network that the trained one is cut to; the trained one stays as it is.

        `decomposed` is what `decomposed()` returned, where that is known.
        """
        if self.form.layers is not None:
            return PrunedModel(copy.deepcopy(self.model), list(self.form.layers))
        return self.cut(*(decomposed or self.decomposed()), validation_loss)

    def decomposed(self) -> tuple[nn.Module, Spectra]:
        """Return the trained network in decomposed form and the exact SVD of each of its layers."""
        model = self.decomposed_copy()
        return model, stored_spectra(model)

    def dense_copy(self) -> nn.Module:
        """Return the trained network as a dense one."""
        return copy.deepcopy(self.model)

    def decomposed_copy(self, device: str | None = None) -> nn.Module:
        """Return the trained network with its layers decomposed, by exact SVDs where they were not; on `device`, if given.

        On "meta" nothing is computed: shapes alone.
        """
        model = self.dense_copy().to(device)
        if not svd_layers(model):
            factorize(model, self.config.decomposition, self.network.sample_shape, self.network.factorization)
        return model

    def cut(self, model: nn.Module, spectra: Spectra, validation_loss: ValidationLoss | None) -> PrunedModel:
        """Return the decomposed `model` cut by the method's rank rule."""
        return prune(model, self.config, self.network.sample_shape, spectra, validation_loss)

    def deployed_form(self, pruned: PrunedModel) -> ModelForm:
        """Return the form of what `finish` returns."""
        layers = tuple(pruned.layers)
        return ModelForm(self.config.decomposition, self.network.factorization, layers=layers)

    def metrics(self) -> dict[str, float]:
        """Return figures of the method's own, logged with each epoch."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold beside weights: plain values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a `state`; the weights are loaded after it."""

    def uncapturable(self) -> str | None:
        """Return the setting with which a CUDA graph of one step would not do for all steps; None where there is none."""
        return None

    def strength_at(self, progress: float) -> float:
        """Return the penalty's weight at `progress` of the stage, by `strength_schedule`."""
        assert self.config.strength is not None
        rising = self.config.strength_schedule == "warmup"
        return self.config.strength * (min(1.0, 2 * progress) if rising else 1.0)
