"""Fakes of all ports, held to the same contract tests as the real adapters. For tests and simulations.

They are deterministic, record what they created, fail on demand and can show the past. `MemoryWorld` joins them.
"""

from retrieval_operator.adapters.memory.faults import Fake
from retrieval_operator.adapters.memory.models import MemoryModelStore
from retrieval_operator.adapters.memory.registry import MemoryRegistry
from retrieval_operator.adapters.memory.serving import MemoryStacks, MemoryTraffic
from retrieval_operator.adapters.memory.workloads import MemoryWorkloads
from retrieval_operator.adapters.memory.world import MemorySurroundings, MemoryWorld

__all__ = [
    "Fake",
    "MemoryModelStore",
    "MemoryRegistry",
    "MemoryStacks",
    "MemorySurroundings",
    "MemoryTraffic",
    "MemoryWorkloads",
    "MemoryWorld",
]
