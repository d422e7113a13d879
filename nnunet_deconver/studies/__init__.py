"""Many trainings on an existing engine: described in a file, recognised on the disk, compared at the end."""
