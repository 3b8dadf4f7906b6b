"""The training worker: a job folder in, an adapter and a report out. No database."""
