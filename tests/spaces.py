"""Search spaces of a user's own, named in configs as `spaces:<function>`."""

from typing import Any

import numpy as np
from optuna.trial import BaseTrial


def quick(trial: BaseTrial) -> dict[str, Any]:
    """Prunes hard enough for a front after two epochs."""
    return {"regularizer": "l1", "strength": 0.01, "energy": trial.suggest_float("energy", 0.01, 0.6)}


def every_method(trial: BaseTrial) -> dict[str, Any]:
    """A different method for each trial, with settings that cut something after two epochs."""
    methods = ["truncated_svd", "trp", "lorita", "lc", "cuttlefish", "arsvd", "evbmf", "svd_training"]
    method = methods[trial.suggest_int("method", 0, len(methods) - 1)]
    own = {"lc": {"rank_cost": 1.0}, "cuttlefish": {"rank_scale": 0.5}, "arsvd": {"entropy": 0.6}, "evbmf": {}}
    return {"method": method, **own.get(method, {"rank_rule": "equal_error", "budget": 0.5})}


def sometimes_diverges(trial: BaseTrial) -> dict[str, Any]:
    """Every other trial has a learning rate that makes its loss NaN."""
    learning_rate = 1e-3 if trial.number % 2 else 1e30
    return {**quick(trial), "learning_rate": learning_rate}


def sometimes_idle(trial: BaseTrial) -> dict[str, Any]:
    """Some trials learn nothing: they stay behind those that do, whatever they are cut to."""
    learning_rate = trial.suggest_categorical("learning_rate", [2e-3, 1e-9])
    return {"regularizer": "l1", "strength": 0.01, "energy": 0.1, "learning_rate": learning_rate}


def always_diverges(trial: BaseTrial) -> dict[str, Any]:
    return {**quick(trial), "learning_rate": 1e30}


def two_rules(trial: BaseTrial) -> dict[str, Any]:
    """A number for each of two rank rules, and one that is not a setting of any rule."""
    settings = {"rank_rule": trial.suggest_categorical("rank_rule", ["energy", "equal_error"])}
    if settings["rank_rule"] == "energy":
        settings["energy"] = trial.suggest_float("energy", 0.01, 0.5)
    else:
        settings["budget"] = trial.suggest_float("budget", 0.1, 0.9)
    return {**settings, "compression_period": trial.suggest_int("compression_period", 10, 40)}


def raises(trial: BaseTrial) -> dict[str, Any]:
    raise RuntimeError("no space today")


def unknown_setting(trial: BaseTrial) -> dict[str, Any]:
    return {"enegry": 0.1}


def numpy_values(trial: BaseTrial) -> dict[str, Any]:
    """What users write: numbers that are numpy's."""
    return {**quick(trial), "strength": np.exp(-4.0), "batch_size": np.int64(64)}


def wrong_type(trial: BaseTrial) -> dict[str, Any]:
    return {**quick(trial), "batch_size": 64.0}


def refuses_some(trial: BaseTrial) -> dict[str, Any]:
    """Passes any probe, and then raises for the first draws of a study of its own."""
    settings = quick(trial)
    if trial.study.study_name == "picky" and trial.number < 3:
        raise ValueError("not this one")
    return settings


NOT_A_FUNCTION = 3
