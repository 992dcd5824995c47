"""Records of trials, as the ledger would write them."""

from orchestrator.curves import CurvePoint
from orchestrator.records import RunRecord


def record(name, accuracy=0.9, macs=100, state="COMPLETE", **columns):
    return RunRecord(name, "trial", state, "", val_accuracy=accuracy, macs=macs, **columns)


def point(trial, settings, score=0.8, macs=50, macs_ratio=0.5, params_ratio=0.5):
    return CurvePoint(trial, settings, macs, macs_ratio, 10, params_ratio, score)
