"""The dashboard: where partners look, vote and check, in a browser.

A client of the chamber like the command line: it holds one seat, reads views and hands in signed notes. It never opens
the journal's store, so that any partner runs its own and need not trust the operator's.
"""
