"""Turn what ends a stage early into errors that say what was saved and what to do."""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Iterator

from rlhf_cli.errors import DiskError, RlhfError, StoppedError
from rlhf_cli.formatting import format_path
from rlhf_cli.pipeline.resolve import ResolvedStage
from rlhf_cli.runs import disk, resume
from rlhf_cli.runs.checkpoint import RESUME_HINT
from rlhf_cli.runs.run import Run

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def convert_errors(run: Run, stage: ResolvedStage) -> Iterator[None]:
    """Log a failure of the stage, and re-raise it as an RlhfError that names the saved checkpoints if it is known.

    Raises:
        StoppedError: A signal interrupted the stage.
        RlhfError: The stage raised one, or ran out of memory or disk space.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise _stopped(run) from None
    except StoppedError as error:
        logger.debug(str(error))
        raise
    except RlhfError as error:
        if not run.discard_if_empty():
            _log_failure(str(error), error.__cause__)
        raise
    except Exception as error:
        _log_failure(f"{type(error).__name__}: {error}", error)
        converted = _machine_error(error, run, stage)
        if converted is not None:
            raise converted from error
        raise


def _stopped(run: Run) -> StoppedError:
    if run.discard_if_empty():
        return StoppedError("run.stopped", "stopped by a signal; nothing was written.", location=run.stage)
    logger.debug("stopped by a signal")
    saved = run.checkpoints()
    if not saved:
        return StoppedError("run.stopped", f"stopped by a signal; incomplete run: {run.path}.", location=run.stage)
    message = f"stopped by a signal; last checkpoint: {format_path(saved[-1])}."
    return StoppedError("run.stopped", message, location=run.stage, hint=RESUME_HINT)


def _log_failure(text: str, cause: BaseException | None) -> None:
    """Write a failure to log.txt, with the traceback if a library or a user function raised it."""
    with contextlib.suppress(OSError):  # the disk may be what failed
        if cause is not None:
            logger.debug("".join(traceback.format_exception(cause)).rstrip())
        logger.debug(resume.FAILURE_PREFIX + text.replace("\n", "; "))


def _machine_error(error: Exception, run: Run, stage: ResolvedStage) -> RlhfError | None:
    """Return an RlhfError for out-of-memory and disk errors, or None for anything else."""
    import torch

    # On a CPU torch raises a plain RuntimeError.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        from rlhf_cli.training import memory_check

        return memory_check.out_of_memory_error(run, stage)
    problem = disk.classify(error)
    if problem is None:
        return None
    path = str(getattr(error, "filename", None) or run.path)
    hint = f"Free up disk space. {RESUME_HINT}" if run.checkpoints() else disk.OTHER_DIR_HINT
    return DiskError(problem.code, f"{problem.description}; incomplete run: {run.path}.", location=path, hint=hint)
