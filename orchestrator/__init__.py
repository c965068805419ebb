"""The coordinator: plans rounds, takes updates in, combines them, has them settled. Start at `round.py`."""
