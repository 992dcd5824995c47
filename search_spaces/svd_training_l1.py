"""A smaller space for small budgets: L1 on the singular values, and the settings that shape the front most."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import BaseTrial


def svd_training_l1(trial: "BaseTrial") -> dict[str, Any]:
    """Suggest decomposition, L1 strength and pruning energy; everything else keeps its default or the config's value."""
    return {
        "decomposition": trial.suggest_categorical("decomposition", ["channel", "spatial"]),
        "regularizer": "l1",
        "strength": trial.suggest_float("strength", 1e-3, 0.1, log=True),
        "energy": trial.suggest_float("energy", 1e-3, 0.5, log=True),
    }
