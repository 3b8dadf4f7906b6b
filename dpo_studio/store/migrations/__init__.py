"""Alembic scripts. Revisions are never edited after a release; see `dpo_studio.store.migrate`."""
