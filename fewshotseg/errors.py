"""The one exception that means "the user can fix this"."""


class InputError(ValueError):
    """Bad input: a file, a folder or a config field.

    The message is one or two sentences that name the file or field, say what is wrong with it, and
    give the remedy. `run.py` prints it without a traceback and exits with status 2.
    """
