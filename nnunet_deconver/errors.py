"""What somebody can mend: every message says what was given, what is allowed and what to do."""


class InputError(ValueError):
    """Something given cannot be used. The command ends with its message and exit code 2."""


class ArgumentError(InputError):
    """An argument cannot be used. The command writes its name as the option's, `out` as `--out`.

    Args:
        argument: name of the function's parameter.
        value: what it got.
        problem: what is wrong with that, and what to do.
    """

    def __init__(self, argument: str, value: object, problem: str) -> None:
        super().__init__(f"{argument} {value}: {problem}")
        self.argument = argument
