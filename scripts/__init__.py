"""What the shell scripts beside it run: `python -m scripts.quickstart` and so on, from the root of the checkout."""
