"""The errors that a person can act on; anything else is a bug and gets a traceback."""

import errno
from pathlib import Path

from pipeline.message import message_of


class PipelineError(Exception):
    """An error with one line about what is wrong, and a `hint` about what to do."""

    kind = "error"
    exit_code = 2

    def __init__(self, message: str, hint: str = "", log: Path | None = None) -> None:
        super().__init__(message)
        self.message = message_of(message)
        self.hint = message_of(hint)
        self.log = log


class ConfigError(PipelineError):
    """A setting is unknown, misspelt or out of range."""

    kind = "configuration"


class MachineError(PipelineError):
    """The machine lacks something: a GPU, a driver, disk space."""

    kind = "machine"


def machine_error(error: OSError) -> MachineError | None:
    """Return what a person can do about a disk or file error; None for any other error, which is a bug."""
    where = error.filename2 or error.filename  # for a rename, its target
    mine = 'it must be yours to read and write: `sudo chown -R "$USER" .` in the project\'s folder'
    advice = {
        errno.ENOSPC: "free some disk space, then run the same command again",
        errno.EDQUOT: "free some of your disk quota, then run the same command again",
        errno.EROFS: "the file system is mounted read-only: mount it for writing, or move the project",
        **({errno.EACCES: mine, errno.EPERM: mine, errno.EISDIR: "move it away: a file is to stand there"} if where else {}),
    }
    if error.errno not in advice:
        return None
    return MachineError(f"{where}: {error.strerror}" if where else str(error.strerror), advice[error.errno])


class InstallError(PipelineError):
    """The server's environment could not be created."""

    kind = "install"


class ModelError(PipelineError):
    """The model could not be fetched or is not what was expected."""

    kind = "model"


class HubSilentError(ModelError):
    """The hub did not answer, so nothing is known about the model there."""


class ServerError(PipelineError):
    """The server did not start, is not the one we started, or died."""

    kind = "server"


class OutOfMemoryError(ServerError):
    """The server did not start for lack of memory; `cause` is the diagnosis by name."""

    kind = "memory"

    def __init__(self, message: str, hint: str, log: Path | None, cause: str) -> None:
        super().__init__(message, hint, log)
        self.cause = cause


class MeasureError(PipelineError):
    """A measurement could not be made."""

    kind = "measurement"


class NothingAnsweredError(MeasureError):
    """No request of a measurement succeeded: its gates fail."""

    kind = "nothing answered"


class MeaninglessError(MeasureError):
    """A measurement would be meaningless here; it is left out with the reason, and counts as no failure."""

    kind = "meaningless"


class BusyError(PipelineError):
    """Another command of this project is running."""

    kind = "busy"


class PublishError(PipelineError):
    """The report could not be published, or not all of it."""

    kind = "publish"


class BundleError(PipelineError):
    """A bundle could not be made, or is not what this machine needs."""

    kind = "bundle"


class RecordError(PipelineError):
    """A record on disk cannot be read."""

    kind = "record"


class NewerRecordError(RecordError):
    """A record was written by another version of this program and must not be overwritten."""


def first_line(error: BaseException) -> str:
    """Return the first line of the error's text, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
