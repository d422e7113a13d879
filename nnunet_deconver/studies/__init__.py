"""Studies: many trainings on an engine, and the report of what they came to."""
