"""Trained models on disk: folder, checkpoint, trainer, network, training log; what a network costs; upgrades."""
