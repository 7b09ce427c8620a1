"""What can go wrong, by kind: each error has an exit code and says what, where and a way out.

The commands print an `IsoflopError` as one line and exit with its code; the traceback stays in the
run's `error.log` (`--debug` prints it). Codes follow sysexits where one fits: 65 data, 70 internal,
73 cannot create, 74 input/output, 75 temporary failure, so that Slurm can requeue on 75.
"""


class IsoflopError(Exception):
    """Base of all errors that a user can act on; `code` is the exit status of the command."""

    code = 1


class ConfigError(IsoflopError):
    """A setting is unknown, of the wrong type, out of range, or does not fit another."""

    code = 2


class DataError(IsoflopError):
    """Text, tokens or a tokenizer cannot be used as they are."""

    code = 65


class CheckpointError(IsoflopError):
    """A checkpoint is damaged, of another model, of another run, or of a newer format."""

    code = 66


class NonFiniteError(IsoflopError):
    """The loss or a gradient is not finite; no update of that step was applied."""

    code = 70


class HangError(IsoflopError):
    """No step ended within the time that the watchdog allows."""

    code = 71


class LockedError(IsoflopError):
    """Another live process owns the run folder."""

    code = 73


class DiskError(IsoflopError):
    """The disk is full, read-only, or failed; what was saved before is intact."""

    code = 74


class Preempted(IsoflopError):
    """A signal asked the run to stop; its state is saved and the same command resumes it."""

    code = 75


class DistributedError(IsoflopError):
    """Hosts cannot find each other or disagree."""

    code = 76


class DeviceMemoryError(IsoflopError):
    """The step does not fit the device's memory."""

    code = 77
