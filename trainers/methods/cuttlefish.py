"""Cuttlefish (Wang et al., MLSys 2023, arXiv 2305.02538): full-rank warm-up, then the factors."""

from dataclasses import asdict
from typing import Any

from trainers.deploy import DeployedLayer, deploy
from trainers.form import ModelForm
from trainers.methods.base import Method
from trainers.rank_rules import scaled_stable_rank


class Cuttlefish(Method):
    """W is trained dense until its scaled stable rank settles; then each layer becomes two, at that rank, and they train.

    Stable rank ||s||^2 / s_1^2, scaled so that a random matrix counts as full. After each epoch, once the mean over layers
    of (scaled stable rank / full rank) has changed by at most `plateau_tolerance`, the network is cut for good; if that
    never happens it is cut when the stage is over. `rank_scale` multiplies the ranks, which gives a front. Departures: the
    plateau is judged on the mean over layers; the rank at the start is its expectation (see `scaled_stable_rank`); layers
    stay dense where multiply-accumulates say so, not a profile; no extra BatchNorm and no Frobenius decay.
    """

    rank_rule = "stable_rank"
    owns_rank_rule = True
    can_continue = False
    settings = ("plateau_tolerance",)

    def attach(self, model: Any, form: ModelForm) -> None:
        """Start without a history."""
        super().attach(model, form)
        self._last: float | None = None

    def end_epoch(self) -> None:
        """Cut if the stable ranks have settled."""
        if self.form.layers is not None:
            return
        decomposed, spectra = self.decomposed()
        shares = [scaled_stable_rank(s, (u.shape[0], vt.shape[1])) / len(s) for u, s, vt in spectra.values()]
        mean = sum(shares) / len(shares)
        settled = self._last is not None and abs(mean - self._last) <= self.config.plateau_tolerance
        self._last = mean
        if settled:
            pruned = self.cut(decomposed, spectra, None)
            self.attach(pruned.model, self.deployed_form(pruned))

    def state(self) -> dict[str, Any]:
        """The last mean, and the ranks once the network is cut."""
        layers = self.form.layers
        return {"last": self._last, "layers": None if layers is None else [asdict(layer) for layer in layers]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Bring the network into the form that it had."""
        if state["layers"] is not None:
            layers = [DeployedLayer(**layer) for layer in state["layers"]]
            model, spectra = self.decomposed()
            form = ModelForm(self.config.decomposition, self.network.factorization, layers=tuple(layers))
            self.attach(deploy(model, layers, spectra), form)
        self._last = state["last"]
