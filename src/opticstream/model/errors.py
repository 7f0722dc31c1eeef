"""The errors that OpticStream raises, one tree.

::

    OpticStreamError
    ├── ConfigurationError (ValueError)      a setting is unknown, of the wrong type, or impossible with another
    ├── InputError (ValueError)              permanent: the data is not what the settings say; a retry cannot help
    │   ├── TileSizeError                    a raw file of another size than the scan settings give
    │   ├── FileFormatError                  a file that is not what its name says, or damaged
    │   ├── FileNameError                    a name that the file-name grammar cannot read or make
    │   ├── CalibrationError                 a wavelength fit, phase or dispersion vector that cannot be used
    │   ├── DuplicateTileError               two files claim one tile
    │   ├── ChangingInputError               a raw file that was still being written when waiting for it ended
    │   ├── EventError                       an announcement that cannot be understood
    │   └── MissingInputError (FileNotFoundError)   a file that was announced is not there
    ├── ProcessingError (RuntimeError)       a stage could not reach a result from good input
    ├── StateError (RuntimeError)            facts contradict each other, or a record cannot be read
    │   ├── LockTimeout (TimeoutError)       a lock stayed taken; the message names its holder
    │   └── ClaimLost                        the work was taken over by another process; results may not be published
    └── ServerError (RuntimeError)           the Prefect server did not answer or refused

Each class is also the builtin that a caller would expect. A message says what was expected, what came, which item and
file, and which setting to turn.
"""

from __future__ import annotations


class OpticStreamError(Exception):
    """Root of every error that OpticStream raises on purpose."""


class ConfigurationError(OpticStreamError, ValueError):
    """A setting is unknown, of the wrong type, or impossible together with another."""


class InputError(OpticStreamError, ValueError):
    """The data is not what the settings say; trying again cannot help."""


class TileSizeError(InputError):
    """A raw file of another size than the scan settings give."""


class FileFormatError(InputError):
    """A file that is not what its name says, or is damaged."""


class FileNameError(InputError):
    """A name that the file-name grammar cannot read or make."""


class CalibrationError(InputError):
    """A wavelength fit, phase vector or dispersion vector that cannot be used."""


class DuplicateTileError(InputError):
    """Two files claim to be the same tile."""


class ChangingInputError(InputError):
    """A raw file that changed whenever it was read, until waiting for it ended."""


class EventError(InputError):
    """An announcement that cannot be understood; the message names the event, the value and what was expected."""


class MissingInputError(InputError, FileNotFoundError):
    """A file that was announced is not there."""


class ProcessingError(OpticStreamError, RuntimeError):
    """A stage could not reach a result from input that looked good."""


class StateError(OpticStreamError, RuntimeError):
    """Facts contradict each other, or a record cannot be read."""


class LockTimeout(StateError, TimeoutError):
    """A lock stayed taken for longer than the caller would wait; the message names its holder."""


class ClaimLost(StateError):
    """The work was taken over by another process, because the lease ran out; results may not be published."""


class ServerError(OpticStreamError, RuntimeError):
    """The Prefect server did not answer, or refused."""
