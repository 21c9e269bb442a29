"""The trainer: one training by either backend."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from rayff.config.activity import activity
from rayff.config.environment import set_ray_defaults
from rayff.config.errors import UserError, nearest
from rayff.config.train_config import TrainConfig

if TYPE_CHECKING:
    from rayff.console.activity_view import ActivityView
    from rayff.engine.callbacks import Callback
    from rayff.engine.run import PreparedRun, TrainResult

Backend = Literal["ray", "local"]


class Trainer:
    """Trains a network of local losses.

        >>> from rayff import Trainer, TrainConfig
        >>> result = Trainer(TrainConfig(arch="tinycnn", task="digits"), backend="local").fit()

    Args:
        config: the options, as a TrainConfig or a mapping of its fields; by default `tinycnn` on
            the embedded digits.
        callbacks: called as the run progresses; see rayff.engine.callbacks.Callback.
        backend: "ray" trains as a pipeline of actors: it joins the cluster that RAY_ADDRESS names
            or that the process is connected to, and else starts a local one for the time of the
            training. "local" trains the same stages in this process, with the same bits.
        quiet: show nothing on the console.

    Raises:
        UserError: a wrong option.
    """

    def __init__(
        self,
        config: TrainConfig | Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        *,
        backend: Backend = "ray",
        quiet: bool = False,
    ) -> None:
        known = get_args(Backend)
        if backend not in known:
            raise UserError(
                f"--backend: unknown {backend!r}{nearest(str(backend), known)}; known are "
                f"{', '.join(known)}"
            )
        given = config if isinstance(config, TrainConfig) else TrainConfig.from_dict(config or {})
        self.config = given
        self.callbacks = list(callbacks)
        self.backend = backend
        self.quiet = quiet

    def fit(self, *, resume: bool = False) -> TrainResult:
        """Train to the end, or to where a signal or a callback asks; return the outcome.

        A run that is complete when it is resumed trains nothing: its model is written again.

        Args:
            resume: continue from the last checkpoint in `config.run_dir`.

        Raises:
            UserError: a mistake in the run or its data, a directory that another process works
                in, or a cluster that cannot hold the plan.
            RunError: more failures than the run allows, or a model that cannot be written.
        """
        if self.quiet:
            return self._fit(None, resume=resume)
        from rayff.console.activity_view import AT_ONCE_S, ActivityView

        with ActivityView(first_line_s=AT_ONCE_S) as view:
            return self._fit(view, resume=resume)

    def _fit(self, view: ActivityView | None, *, resume: bool) -> TrainResult:
        with activity("loading torch"):
            from rayff.engine.claim import claimed
            from rayff.engine.preparation import prepare

        self._check_options()
        with claimed(self.config, resume=resume, on_wait=self._say) as config:
            prepared = prepare(config, resume=resume)
            if (result := finished(prepared)) is None:
                return self._train(prepared, view)
            last = result.metrics[-1]
            complete = last.epoch == result.epochs
            state, longer = (
                ("complete", "--epochs") if complete else ("out of patience", "--patience")
            )
            self._say(f"the run is {state}: {last.reached}; to train longer, raise {longer}")
            return result

    def _train(self, prepared: PreparedRun, view: ActivityView | None) -> TrainResult:
        from rayff.console.log import LogCallback
        from rayff.console.run_view import ConsoleCallback

        options = ["--backend", "local"] if self.backend == "local" else []
        callbacks = list(self.callbacks)
        if view is not None:
            callbacks.append(ConsoleCallback(view.console, view, resume_options=options))
        callbacks.append(LogCallback(options))
        if self.backend == "local":
            from rayff.engine.local import train_locally

            return train_locally(prepared, callbacks)
        set_ray_defaults()
        with activity("loading Ray"):
            from rayff.distributed.controller import train_on_cluster
        return train_on_cluster(prepared, callbacks)

    def _say(self, message: str) -> None:
        if not self.quiet:
            from rayff.console.outlet import Outlet

            print(message, file=Outlet(sys.stdout), flush=True)

    def _check_options(self) -> None:
        """Raise a UserError where the backend has no use for an option, or a logger is missing."""
        if self.backend == "local":
            from rayff.engine.local import check_local_options

            check_local_options(self.config)
        names = [name for name in self.config.loggers if name != "tensorboard"]
        if not names:
            return
        if self.backend == "local":
            raise UserError(
                f"--logger {names[0]} goes through Ray: leave it out with --backend local, or use "
                "--backend ray"
            )
        set_ray_defaults()
        from rayff.distributed.loggers import check_loggers

        check_loggers(names)


def finished(prepared: PreparedRun) -> TrainResult | None:
    """Return the result of a run that is complete, after writing its model again; else None.

    The model may be missing, damaged or an epoch behind. A run with a copy elsewhere is trained to
    its end as usual, which brings that up to date.
    """
    from rayff.config.errors import RunError
    from rayff.engine.active_run import keep_missed
    from rayff.engine.run import TrainResult
    from rayff.learning.readout import Readouts
    from rayff.runs.checkpoint_manager import reason
    from rayff.runs.run_directory import resume_command

    elsewhere = prepared.storage is not None or set(prepared.config.loggers) - {"tensorboard"}
    records = [] if elsewhere else prepared.complete_records()
    if not records or prepared.checkpoint is None or prepared.config.precision is None:
        return None
    window = records[-1].sip_first, records[-1].sip_last
    readouts = prepared.checkpoint.readouts or Readouts(window=window)
    try:
        prepared.write_model(prepared.checkpoint, readouts, prepared.config.precision)
        keep_missed(prepared, records)
    except OSError as error:
        raise RunError(
            f"the model of the last checkpoint could not be written ({reason(error)}): make room "
            f"in {prepared.directory.path}, then {resume_command(prepared.directory.path)}"
        ) from error
    return TrainResult(
        run_dir=prepared.directory.path,
        metrics=records,
        epochs=prepared.recipe.epochs,
        patience=prepared.config.patience,
    )
