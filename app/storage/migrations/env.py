"""Run by Alembic: applies the revisions on the connection, and in the transaction, that `migrate` holds."""

from alembic import context

from app.storage.database import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=False,  # the caller commits
)
context.run_migrations()
