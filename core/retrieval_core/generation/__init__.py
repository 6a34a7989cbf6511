"""Index generations: one bundle applied to one corpus snapshot, and the search over it (docs/contracts.md section 6).

Whoever reads, searches or writes a generation goes through here; faiss is imported in `search.py` only.
"""

from retrieval_core.generation.manifest import Checks, FileEntry, Latency, Manifest, generation_id
from retrieval_core.generation.reader import Generation, SearchResult

__all__ = ["Checks", "FileEntry", "Generation", "Latency", "Manifest", "SearchResult", "generation_id"]
