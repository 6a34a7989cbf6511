"""Recall on held-out members, for a candidate and a champion alike, and what it lets one conclude.

Read in this order: `evaluation_set.py` (who is asked and what counts as right), `pools.py`, `recall.py` (the metrics),
`bootstrap.py` (the bounds), `run.py` (the whole).
"""
