"""The demo: from data to a segmented image with nnU-Net's own commands, in one go; `run` tells how."""

TRAINER = "nnUNetTrainerDeconverDemo"
