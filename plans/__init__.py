"""Experiment planners and presets."""
