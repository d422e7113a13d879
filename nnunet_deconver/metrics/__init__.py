"""Metrics of segmentations, and their computation over folders of cases."""
