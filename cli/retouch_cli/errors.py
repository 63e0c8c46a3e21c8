"""What a command may fail with."""


class Failure(Exception):
    """The command cannot go on; the message is the one line its user sees."""
