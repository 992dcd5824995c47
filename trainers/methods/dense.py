"""The baseline: the network as it is."""

import copy

from torch import nn

from trainers.deploy import PrunedModel, Spectra
from trainers.form import ModelForm
from trainers.methods.base import Method, ValidationLoss


class Dense(Method):
    """Ordinary training; nothing is cut."""

    rank_rule = None
    owns_rank_rule = True
    ranks_at_cut = False
    can_continue = False

    def finish(
        self, validation_loss: ValidationLoss | None = None, decomposed: tuple[nn.Module, Spectra] | None = None
    ) -> PrunedModel:
        """Return a copy of the network."""
        return PrunedModel(copy.deepcopy(self.model), [])

    def deployed_form(self, pruned: PrunedModel) -> ModelForm:
        """Return the form it has."""
        return self.form
