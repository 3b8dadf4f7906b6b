"""SQLite through SQLModel: the truth about votes, rounds and versions. No torch."""
