"""The demo: a whole consortium on one machine, from its charter to its release. Start reading at `run.py`."""
