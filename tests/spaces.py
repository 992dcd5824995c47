"""Search spaces of a user's own, named in configs as `spaces:<function>`."""

from typing import Any

from optuna.trial import BaseTrial


def quick(trial: BaseTrial) -> dict[str, Any]:
    """Prunes hard enough for a front after two epochs."""
    return {"regularizer": "l1", "strength": 0.01, "energy": trial.suggest_float("energy", 0.01, 0.6)}


def sometimes_diverges(trial: BaseTrial) -> dict[str, Any]:
    """Every other trial has a learning rate that makes its loss NaN."""
    learning_rate = 1e-3 if trial.number % 2 else 1e30
    return {**quick(trial), "learning_rate": learning_rate}


def always_diverges(trial: BaseTrial) -> dict[str, Any]:
    return {**quick(trial), "learning_rate": 1e30}


def raises(trial: BaseTrial) -> dict[str, Any]:
    raise RuntimeError("no space today")


def unknown_setting(trial: BaseTrial) -> dict[str, Any]:
    return {"enegry": 0.1}


NOT_A_FUNCTION = 3
