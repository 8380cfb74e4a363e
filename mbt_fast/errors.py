"""Errors that a user, not a programmer, has to mend."""


class InputError(ValueError):
    """A file, checkpoint or flag cannot be used; the message is one line and says why.

    The command line prints it and exits with code 2, without a traceback.
    """


class ClipError(InputError):
    """A clip cannot be decoded, or holds nothing that the model takes."""


class CheckpointError(InputError):
    """Weights cannot be read, or do not fit the configuration."""
