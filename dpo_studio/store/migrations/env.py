"""Alembic's entry point: runs the revisions on the connection that `store.migrate` hands over.

The transaction belongs to the caller. Executed by Alembic, never imported.
"""

from alembic import context

from dpo_studio.store.tables import Record

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Record.metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
