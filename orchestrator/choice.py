"""Which candidates a person has fine-tuned: by name, within limits, or at the knee (`rankfront finetune`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from orchestrator.config import SweepConfig
from orchestrator.constraints import feasible
from orchestrator.curves import candidates
from orchestrator.finalists import pick_among, within_reach
from orchestrator.front import point_of
from orchestrator.objectives import saves
from orchestrator.picks import pick
from orchestrator.records import RunRecord
from orchestrator.selection import Limits
from orchestrator.tuned import Finalist, fine_tuned
from trainers.errors import SweepError
from trainers.rules import unknown_name


@dataclass(frozen=True)
class Choice:
    """`names` of candidates, such as `trial-0003-cut-2`, whatever their scores; or, where there are none, at most `num`
    (None: the sweep's `finetune.num_models`) of the front of all cuts that keep to `limits`, or its `knee` alone; those
    that cannot get past what is fine-tuned already (`finalists.within_reach`) are left out.

    Accuracies are those before fine-tuning, the cuts' scores.
    """

    names: tuple[str, ...] = ()
    num: int | None = None
    limits: Limits = field(default_factory=Limits)
    knee: bool = False

    def of(self, records: Sequence[RunRecord], config: SweepConfig) -> list[RunRecord]:
        """Return the candidates chosen; raises SweepError where there are none."""
        cuts = candidates([record for record in records if record.stage == "trial"])
        if not cuts:
            raise SweepError(
                "at least one trial must have ended complete, but none of this sweep has; finish its search"
            )
        return self._named(cuts) if self.names else self._within_limits(cuts, fine_tuned(records), config)

    def _named(self, cuts: list[RunRecord]) -> list[RunRecord]:
        by_name = {cut.name: cut for cut in cuts}
        for name in self.names:
            if name not in by_name:
                raise SweepError(unknown_name("candidate", name, by_name))
        return [by_name[name] for name in dict.fromkeys(self.names)]

    def _within_limits(self, cuts: list[RunRecord], tuned: Sequence[Finalist], config: SweepConfig) -> list[RunRecord]:
        cuts = within_reach(cuts, tuned)
        limits = config.search.constraints
        kept = [cut for cut in cuts if saves(cut) and feasible(cut, limits) and self.limits.admit(point_of(cut))]
        if self.knee and kept:
            points = {point_of(cut): cut for cut in kept}
            return [points[pick(list(points))["knee"]]]
        num = config.finetune.num_models if self.num is None else self.num
        picks = pick_among(kept, replace(config.finetune, num_models=num), num_scored=config.curve.max_validation)
        if not picks:
            least = min(cuts, key=lambda cut: cut.macs or 0)
            which = " that may get past the finalists" if tuned else ""
            raise SweepError(
                f"at least one candidate must have {self.limits} before fine-tuning, but none of {len(cuts)}{which} has; "
                f"the fewest MACs are {least.macs:,}; relax a limit"
            )
        return picks
