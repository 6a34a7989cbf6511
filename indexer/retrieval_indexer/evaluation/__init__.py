"""Recall on held-out members, for a candidate and a champion alike, and what it lets one conclude.

A stack is scored exactly, by its generation's stored vectors at the served dimension. The faiss index is not asked:
what it loses against them is `checks.recallAtServedK` of the generation, which has its own bound, so that a comparison
of two models does not mix with how hard two indexes search.

Read in this order: `evaluation_set.py` (who is asked and what counts as right), `pools.py`, `recall.py` (the metrics),
`bootstrap.py` (the bounds), `run.py` (the whole).
"""
