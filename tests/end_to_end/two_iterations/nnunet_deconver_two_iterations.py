"""Every trainer under its own name, for two iterations: commands run as they are printed."""

import nnunet_deconver.trainers as trainers

for _name in trainers.__all__:
    _length = {"epochs": 1, "iterations_per_epoch": 2, "validation_iterations_per_epoch": 1}
    globals()[_name] = type(_name, (getattr(trainers, _name),), {"__module__": __name__, **_length})
