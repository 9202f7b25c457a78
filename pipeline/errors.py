"""The few kinds of trouble a person can act on; anything else is a bug and gets a traceback."""

from pathlib import Path


class PipelineError(Exception):
    """Say in one line what is wrong, and in `hint` what to do about it."""

    kind = "error"
    exit_code = 2

    def __init__(self, message: str, hint: str = "", log: Path | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log


class ConfigError(PipelineError):
    """A setting is unknown, misspelt or out of range."""

    kind = "configuration"


class MachineError(PipelineError):
    """The machine lacks something: a GPU, a driver, disk space."""

    kind = "machine"


class InstallError(PipelineError):
    """The server's environment could not be made."""

    kind = "install"


class ModelError(PipelineError):
    """The model could not be fetched or is not what was expected."""

    kind = "model"


class ServerError(PipelineError):
    """The server did not start, is not the one we started, or died."""

    kind = "server"


class MeasureError(PipelineError):
    """A measurement could not be made."""

    kind = "measurement"


class MeaninglessError(MeasureError):
    """A measurement would mean nothing here; it is left out, with the reason, and nothing is broken."""

    kind = "meaningless"


class BusyError(PipelineError):
    """Another command of this project is at work."""

    kind = "busy"


class RecordError(PipelineError):
    """A record on disk cannot be read."""

    kind = "record"


class NewerRecordError(RecordError):
    """A record was written by another version of this program and must not be overwritten."""
