"""What the consortium decides and owes: the journal and the views that are folded from it.

Nothing here knows torch or Ray, and nothing trains.
"""
