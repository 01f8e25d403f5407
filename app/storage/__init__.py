import os

# polars reads row groups ahead, several for each core: with one at a time an upload takes a third of the memory, and
# no longer. Whoever starts the service may say otherwise.
os.environ.setdefault("POLARS_ROW_GROUP_PREFETCH_SIZE", "1")
