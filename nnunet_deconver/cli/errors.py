"""What the command reports to its user instead of a traceback."""


class CommandError(ValueError):
    """An error the user can mend; its message says how."""
