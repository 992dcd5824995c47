"""What a person sees while a sweep runs: a table that is redrawn on a terminal, plain lines elsewhere."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.config import SweepConfig
from orchestrator.jobs import dense_job, job_epochs
from orchestrator.ledger import Ledger, OpenRun, Snapshot
from orchestrator.records import RunRecord
from orchestrator.running_front import RunningFront

_PLAIN_TICK_S = 1.0
_REDRAWS_PER_S = 2
_SHOWN_RUNS = 8


class SweepView:
    """Shows a ledger on a console. `num_stage1` runs of stage 1 are expected."""

    def __init__(self, console: Console, config: SweepConfig, num_stage1: int) -> None:
        self._console, self._config, self._num_stage1 = console, config, num_stage1
        self._started = time.monotonic()
        self._front = RunningFront()

    @contextmanager
    def showing(self, ledger: Ledger) -> Iterator[None]:
        """Show the ledger until the block ends."""
        if self._console.is_terminal:
            with Live(
                get_renderable=lambda: self._table(ledger.snapshot()),
                console=self._console,
                refresh_per_second=_REDRAWS_PER_S,
                transient=True,
            ):
                yield
            return
        stop = threading.Event()
        printer = threading.Thread(target=self._print_lines, args=(ledger, stop), daemon=True)
        printer.start()
        try:
            yield
        finally:
            stop.set()
            printer.join()

    def _print_lines(self, ledger: Ledger, stop: threading.Event) -> None:
        """One line for each run that ends, until `stop`; runs that had ended before are not repeated."""
        shown = {record.name for record in ledger.records()}
        while True:
            last_round = stop.wait(_PLAIN_TICK_S)
            snapshot = ledger.snapshot()
            for count, record in enumerate(snapshot.records, start=1):
                if record.name not in shown:
                    shown.add(record.name)
                    self._console.print(self._line(record, snapshot.records[:count]), soft_wrap=True, highlight=False)
            if last_round:
                return

    def _line(self, record: RunRecord, records: list[RunRecord]) -> str:
        elapsed = _clock(time.monotonic() - self._started)
        if record.error is not None:
            return f"[{elapsed}] {record.name}: FAIL, {_last_line(record.error)}".replace("[", "\\[")
        parts = [f"val_accuracy {record.val_accuracy:.4f}", f"macs_ratio {record.macs_ratio:.3f}"]
        if record.stage == "trial":
            trials = [other for other in records if other.stage == "trial"]
            front = self._front_with(trials)
            parts.append(f"{len(trials)}/{self._config.search.num_trials} trials, front {len(front.cuts)}")
            parts.append(f"hypervolume {front.hypervolume:.4f}")
        return f"\\[{elapsed}] {record.name}: " + ", ".join(parts)

    def _front_with(self, trials: list[RunRecord]) -> RunningFront:
        """Return the front of all trials, which are only ever added."""
        self._front.add(trials[self._front.num_trials :])
        return self._front

    def _table(self, snapshot: Snapshot) -> RenderableType:
        trials = [record for record in snapshot.records if record.stage == "trial"]
        complete = [record for record in trials if record.state == "COMPLETE"]
        stopped = [record for record in trials if record.state == "PRUNED"]
        front = self._front_with(trials)
        running = [run for run in snapshot.open_runs if run.job.stage == "trial"]
        waiting = max(0, self._config.search.num_trials - len(trials) - len(running))
        best = front.best_accuracy
        elapsed = time.monotonic() - self._started
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold")
        grid.add_column()
        grid.add_row("stage", _stage_text(snapshot))
        grid.add_row(
            "trials",
            f"{len(complete)} complete, {len(stopped)} stopped early, {len(trials) - len(complete) - len(stopped)} failed, "
            f"{len(running)} running, {waiting} to come",
        )
        grid.add_row("best accuracy", "-" if best is None else f"{100 * best:.2f} % (validation, cut, not fine-tuned)")
        grid.add_row("front", f"{len(front.cuts)} cuts, hypervolume {front.hypervolume:.4f}")
        grid.add_row("time", f"{_clock(elapsed)} elapsed, about {self._remaining(snapshot)} left")
        return Group(
            Text(f"sweep {self._config.name}", style="bold"), grid, _open_table(snapshot.open_runs, self._config)
        )

    def _remaining(self, snapshot: Snapshot) -> str:
        """Epochs still to be trained, at the mean duration so far, over the runs at once."""
        config = self._config
        training, finetune = config.training, config.finetune
        dense = job_epochs(dense_job(config), config)
        total = (
            self._num_stage1 * training.pretrain_epochs
            + config.search.num_trials * training.epochs
            + finetune.num_models * finetune.repeats * finetune.epochs
            + dense
        )
        done = sum(record.epochs or 0 for record in snapshot.records) + sum(run.epoch for run in snapshot.open_runs)
        if not snapshot.epoch_durations_s:
            return "an unknown time"
        mean = sum(snapshot.epoch_durations_s) / len(snapshot.epoch_durations_s)
        return _clock(max(0, total - done) * mean / config.search.max_concurrent)


def _open_table(runs: list[OpenRun], config: SweepConfig) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), expand=True)
    for heading in ("run", "epoch", "val acc.", "MACs"):
        table.add_column(heading, no_wrap=True)
    table.add_column("settings", no_wrap=True, overflow="ellipsis", ratio=1)  # takes what the others leave
    for run in runs[:_SHOWN_RUNS]:
        metrics = run.metrics
        settings = ", ".join(f"{key} {_short(value)}" for key, value in run.job.settings.items())
        table.add_row(
            run.job.name,
            f"{run.epoch}/{job_epochs(run.job, config)}",
            f"{100 * metrics['val_accuracy']:.2f} %" if "val_accuracy" in metrics else "",
            f"{100 * metrics['macs_ratio']:.1f} %" if "macs_ratio" in metrics else "",
            settings,
        )
    return table


def _stage_text(snapshot: Snapshot) -> str:
    stages = {run.job.stage for run in snapshot.open_runs}
    if "pretrain" in stages:
        return "1 of 3: full-rank training, shared by all trials"
    if "trial" in stages:
        return "2 of 3: search"
    return "3 of 3: fine-tuning and dense baseline" if stages else "starting workers"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
