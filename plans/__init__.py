"""Experiment planners and presets, and what they decide by: the cost of a network.

Every name in `__all__` is an experiment planner that `nnUNetv2_plan_experiment -pl` accepts.
"""

from nnunet_deconver.plans import planners
from nnunet_deconver.plans.planners import *  # noqa: F403

__all__ = [*planners.__all__]
