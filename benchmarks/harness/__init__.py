"""`ingot bench`: contestants in turn, each in a fresh process; `run.py` is where to start reading."""
