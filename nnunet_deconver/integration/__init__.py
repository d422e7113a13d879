"""The installed nnU-Net: where it is, how it finds this package's classes, the user's dataset folders."""
