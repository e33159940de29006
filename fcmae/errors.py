"""The one exception a user's mistake ends in: a clear line instead of a traceback."""


class InputError(ValueError):
    """A user's input that cannot be used: `<what>: expected ..., got .... <what to change>`.

    The command line prints it as one line and exits with code 2; as a library it is a ValueError.
    """
