"""All methods and regularizers, and the rank rules that any method can use, in one space."""

from typing import TYPE_CHECKING, Any

from search_spaces.svd_training import STRENGTH

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

STRENGTHS = {**STRENGTH, "funnel": (1e-4, 0.1), "log_sum": (1e-4, 0.1)}
METHODS = ("svd_training", "truncated_svd", "trp", "lorita", "lc", "cuttlefish", "arsvd", "evbmf")
# rules that any method can use, with the number each reads; `greedy` is left out, it costs many evaluations an epoch
RANK_RULES = ("energy", "equal_error", "knapsack", "log_knapsack")


def methods(trial: "BaseTrial") -> dict[str, Any]:
    """Suggest a method, what it needs, and a rank rule where it has none of its own; and the learning rate."""
    method = trial.suggest_categorical("method", list(METHODS))
    return {
        "method": method,
        "decomposition": trial.suggest_categorical("decomposition", ["channel", "spatial"]),
        "learning_rate": trial.suggest_float("learning_rate", 3e-4, 3e-3, log=True),
        **_SETTINGS[method](trial),
    }


def _rank_rule(trial: "BaseTrial") -> dict[str, Any]:
    rule = trial.suggest_categorical("rank_rule", list(RANK_RULES))
    if rule == "energy":
        return {"rank_rule": rule, "energy": trial.suggest_float("energy", 1e-3, 0.6, log=True)}
    return {"rank_rule": rule, "budget": trial.suggest_float("budget", 0.05, 0.9, log=True)}


def _svd_training(trial: "BaseTrial") -> dict[str, Any]:
    regularizer = trial.suggest_categorical("regularizer", list(STRENGTHS))
    low, high = STRENGTHS[regularizer]
    strength = trial.suggest_float(f"strength_{regularizer}", low, high, log=True)
    return {"regularizer": regularizer, "strength": strength, **_rank_rule(trial)}


def _truncated_svd(trial: "BaseTrial") -> dict[str, Any]:
    regularizer = trial.suggest_categorical("spectral_regularizer", ["none", "nuclear_norm", "spectral_hoyer_square"])
    if regularizer == "none":
        return _rank_rule(trial)
    strength = trial.suggest_float("strength_spectral", 1e-5, 1e-2, log=True)
    return {"regularizer": regularizer, "strength": strength, **_rank_rule(trial)}


def _trp(trial: "BaseTrial") -> dict[str, Any]:
    return {
        "strength": trial.suggest_float("strength_trp", 1e-5, 1e-2, log=True),
        "truncation_energy": trial.suggest_float("truncation_energy", 0.01, 0.3, log=True),
        **_rank_rule(trial),
    }


def _lorita(trial: "BaseTrial") -> dict[str, Any]:
    return {
        "num_factors": trial.suggest_categorical("num_factors", [2, 3]),
        "strength": trial.suggest_float("strength_lorita", 1e-5, 1e-2, log=True),
        **_rank_rule(trial),
    }


def _lc(trial: "BaseTrial") -> dict[str, Any]:
    return {"rank_cost": trial.suggest_float("rank_cost", 0.03, 30, log=True)}


def _scaled(trial: "BaseTrial") -> dict[str, Any]:
    return {"rank_scale": trial.suggest_float("rank_scale", 0.1, 2, log=True)}


def _entropy(trial: "BaseTrial") -> dict[str, Any]:
    return {"entropy": trial.suggest_float("entropy", 0.3, 0.99)}


_SETTINGS = {
    "svd_training": _svd_training,
    "truncated_svd": _truncated_svd,
    "trp": _trp,
    "lorita": _lorita,
    "lc": _lc,
    "cuttlefish": _scaled,
    "arsvd": _entropy,
    "evbmf": _scaled,
}
