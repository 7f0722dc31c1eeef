"""The errors that OpticStream raises, one tree.

::

    OpticStreamError
    ├── ConfigurationError (ValueError)      a setting is unknown, of the wrong type, or impossible with another
    ├── InputError (ValueError)              permanent: the data does not match the settings; a retry cannot help
    │   ├── TileSizeError                    a raw file of another size than the scan settings give
    │   ├── FileFormatError                  a file that does not match its name, or damaged
    │   ├── FileNameError                    a name that the file-name grammar cannot read or make
    │   ├── CalibrationError                 a wavelength fit, phase or dispersion vector that cannot be used
    │   ├── DuplicateTileError               two files for one tile
    │   ├── ChangingInputError               a raw file that was still changing when waiting for it ended
    │   ├── EventError                       an event that cannot be understood
    │   └── MissingInputError (FileNotFoundError)   a file that was announced is not there
    ├── ProcessingError (RuntimeError)       a stage failed on good input
    ├── EngineError (RuntimeError)           MATLAB, Octave or Fiji ended without its results; a later attempt may help
    │   ├── CardError                        a graphics card that is asked for cannot be used, or failed
    │   ├── EngineTimeout (TimeoutError)     it took longer than allowed, and was ended
    │   ├── EngineOutOfMemory (MemoryError)  it had too little memory, or was killed, as for want of memory
    │   └── LicenseError                     it got no licence in time
    ├── StateError (RuntimeError)            facts contradict each other, or a record cannot be read
    │   ├── LockTimeout (TimeoutError)       a lock was not released in time; the message names its holder
    │   ├── ChangingStacksError              a slice is being added to the sample's stacks; they are read afterwards
    │   └── ClaimLost                        the work was taken over by another process; results may not be published
    ├── UploadError (RuntimeError)           a remote target refused an upload, or holds other bytes than were sent
    │   └── TargetUnavailable (ConnectionError)     it did not answer, or has no time; a later attempt may help
    └── ServerError (RuntimeError)           the Prefect server did not answer or refused

Each class is also the builtin that a caller would expect. A message says what is wrong, where (file, item, setting and
value), what was expected, and what to do.
"""

from __future__ import annotations


class OpticStreamError(Exception):
    """Base class of all errors that OpticStream raises."""


class ConfigurationError(OpticStreamError, ValueError):
    """A setting is unknown, of the wrong type, or impossible together with another."""


class InputError(OpticStreamError, ValueError):
    """The data does not match the settings; trying again cannot help."""


class TileSizeError(InputError):
    """A raw file of another size than the scan settings give."""


class FileFormatError(InputError):
    """A file that does not match its name, or is damaged."""


class FileNameError(InputError):
    """A name that the file-name grammar cannot read or make."""


class CalibrationError(InputError):
    """A wavelength fit, phase vector or dispersion vector that cannot be used."""


class DuplicateTileError(InputError):
    """Two files have the name of the same tile."""


class ChangingInputError(InputError):
    """A raw file that kept changing until waiting for it ended."""


class EventError(InputError):
    """An event that cannot be understood; the message names the event, the value and what was expected."""


class MissingInputError(InputError, FileNotFoundError):
    """A file that was announced is not there."""


class ProcessingError(OpticStreamError, RuntimeError):
    """A stage failed on input that appeared good."""


class EngineError(OpticStreamError, RuntimeError):
    """MATLAB, Octave or Fiji ended without its results."""


class CardError(EngineError):
    """A graphics card cannot be used, or failed; the message says why."""


class EngineTimeout(EngineError, TimeoutError):
    """MATLAB, Octave or Fiji took longer than allowed, and was ended."""


class EngineOutOfMemory(EngineError, MemoryError):
    """MATLAB, Octave or Fiji had too little memory, or was killed, as systems do for want of memory."""


class LicenseError(EngineError):
    """MATLAB got no licence within the time that it was tried again."""


class StateError(OpticStreamError, RuntimeError):
    """Facts contradict each other, or a record cannot be read."""


class LockTimeout(StateError, TimeoutError):
    """A lock was not released within the time that the caller would wait; the message names its holder."""


class ClaimLost(StateError):
    """The work was taken over by another process, because the lease ran out; results may not be published."""


class ChangingStacksError(StateError):
    """A slice is being added to the sample's stacks, so they cannot be copied now."""


class UploadError(OpticStreamError, RuntimeError):
    """A remote target refused an upload, or holds other bytes than were sent; trying again cannot help."""


class TargetUnavailable(UploadError, ConnectionError):
    """A remote target did not answer, or has no time for now."""

    def __init__(self, message: str, /, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ServerError(OpticStreamError, RuntimeError):
    """The Prefect server did not answer, or refused."""
