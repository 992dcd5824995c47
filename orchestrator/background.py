"""Calls that run one after another beside the thread that hands them in: a worker's next trial must not wait for books."""

import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from orchestrator.storage import causes

_P = ParamSpec("_P")
_T = TypeVar("_T")
# Python's own 5 ms: so long the other thread, which hands workers their next trials, would wait each time it wakes up
_SWITCH_INTERVAL_S = 0.0005


class Background:
    """Runs calls in the order in which they are handed in: on a thread of its own, or, with `threaded=False`, at once.

    As a context manager it waits, at the end of the block, for all of them. The first exception of a call is raised again
    in the thread that hands calls in: by the next `submit`, or at the end; what was handed in after the failed one is not
    run.
    """

    def __init__(self, *, threaded: bool = True) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="bookkeeping") if threaded else None
        self._failed: BaseException | None = None
        self._switch_interval_s = sys.getswitchinterval()

    def submit(self, call: "Callable[_P, _T]", *args: "_P.args", **kwargs: "_P.kwargs") -> "Future[_T]":
        """Hand a call in; the future has its result, or its exception."""
        self._raise_failure()
        if self._executor is not None:
            return self._executor.submit(self._run, call, *args, **kwargs)
        done: Future[_T] = Future()
        done.set_result(call(*args, **kwargs))
        return done

    def wait(self) -> None:
        """Wait for all that has been handed in."""
        self.submit(int).result()

    def _run(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._raise_failure()
        try:
            return call(*args, **kwargs)
        except BaseException as error:
            self._failed = error
            raise

    def _raise_failure(self) -> None:
        if self._failed is not None:
            raise self._failed

    def __enter__(self) -> "Background":
        if self._executor is not None:
            sys.setswitchinterval(_SWITCH_INTERVAL_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown()
            sys.setswitchinterval(self._switch_interval_s)
        if self._failed is None or self._failed is error or not isinstance(error, Exception | None):
            return
        if any(cause is self._failed for cause in causes(error)):  # Tune wraps what its callbacks raise
            raise self._failed
        raise self._failed from error
