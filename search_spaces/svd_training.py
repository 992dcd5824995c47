"""The whole space of SVD training, with ranges that cover what its authors used (Yang et al., CVPR-W 2020)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

# strength by regularizer, log-uniform; Hoyer-Square's values reach r - 1 instead of sqrt(r) - 1, hence the lower range
STRENGTH = {"l1": (1e-4, 0.5), "hoyer": (1e-4, 0.5), "hoyer_square": (1e-5, 0.1)}

# tried before anything is drawn: a weak, a weaker and a strong pressure towards low rank, else what trains well, in either
# form. The weaker one is for the front's upper end
FIRST_POINTS: "tuple[dict[str, Any], ...]" = tuple(
    {
        "decomposition": decomposition,
        "regularizer": "hoyer_square",
        "strength_hoyer_square": strength,
        "orthogonality_weight": 0.5,
        "energy": 0.05,
        "learning_rate": 2e-3,
        "spectrum_learning_rate": 10.0,
    }
    for strength in (0.003, 0.0005, 0.05)
    for decomposition in ("spatial", "channel")
)


def svd_training(trial: "BaseTrial") -> dict[str, Any]:
    """Suggest decomposition, regularizer, its strength, orthogonality weight, pruning energy and learning rates.

    Energies below 1e-4 are left out: they change a weight by under 1 % in norm, and remove next to nothing. At the
    network's learning rate, as the authors have it, singular values move too slowly to become sparse in a few epochs: a
    factor for theirs is searched as well.
    """
    regularizer = trial.suggest_categorical("regularizer", list(STRENGTH))
    low, high = STRENGTH[regularizer]
    return {
        "decomposition": trial.suggest_categorical("decomposition", ["channel", "spatial"]),
        "regularizer": regularizer,
        "strength": trial.suggest_float(f"strength_{regularizer}", low, high, log=True),
        "orthogonality_weight": trial.suggest_float("orthogonality_weight", 0.1, 10, log=True),
        "energy": trial.suggest_float("energy", 1e-4, 0.5, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
        "spectrum_learning_rate": trial.suggest_float("spectrum_learning_rate", 1, 30, log=True),
    }
