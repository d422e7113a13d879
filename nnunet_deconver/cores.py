"""The processor's cores that this process may use."""

import os


def usable_cores() -> tuple[int, ...]:
    """Their numbers; where the system does not say, those of the machine."""
    try:
        return tuple(sorted(os.sched_getaffinity(0)))
    except AttributeError:  # not on every system
        return tuple(range(os.cpu_count() or 1))
