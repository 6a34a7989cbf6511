"""Dataset -> bundle: fine-tunes a causal LLM as a dual encoder (docs/contracts.md, ARCHITECTURE.md).

Read first: `loop.py` (the story of a training), `loss.py` (the equations), `sampling.py` (what a batch is).
"""
