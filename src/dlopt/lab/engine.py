"""Engines: where runs execute. `submit(runs, settings) -> outcomes`, in the order in which they end.

An engine knows nothing of what a run does. Records are written by whoever executes a run, so a driver that dies
loses nothing. Clusters come behind the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from dlopt.lab.experiment import Run
from dlopt.lab.run import Outcome, Settings, execute

Submit = Callable[[Sequence[Run], Settings, int], Iterator[Outcome]]


class EngineError(RuntimeError):
    """An engine that is unknown, or that lost a worker."""


def inline(runs: Sequence[Run], settings: Settings, jobs: int) -> Iterator[Outcome]:
    """One run after the other in this process."""
    for run in runs:
        yield execute(run, settings)


def joblib(runs: Sequence[Run], settings: Settings, jobs: int) -> Iterator[Outcome]:
    """`jobs` worker processes on this machine (joblib's loky)."""
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    with parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=settings.threads):
        pool = Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch=jobs)
        try:
            yield from pool(delayed(execute)(run, settings) for run in runs)
        except TerminatedWorkerError as error:
            raise EngineError(
                "a worker process was killed (out of memory, or by hand); its run keeps its checkpoint: "
                "give the same command again, with fewer --jobs if memory was short"
            ) from error


ENGINES: dict[str, Submit] = {"inline": inline, "joblib": joblib}


def submit(runs: Sequence[Run], settings: Settings, engine: str = "inline", jobs: int = 1) -> Iterator[Outcome]:
    """Execute runs on the named engine."""
    if engine not in ENGINES:
        raise EngineError(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
    yield from ENGINES[engine](runs, settings, jobs)
