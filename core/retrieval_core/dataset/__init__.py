"""A dataset: members, items and their interactions, validated, split, and seen as of a time.

`open_dataset` refuses what is wrong with every problem named; `FeatureView` answers what was known about an item or a
member at a time, and never later.
"""

from retrieval_core.dataset.checks import MAX_ID_CHARS
from retrieval_core.dataset.dataset import Dataset, Events, open_dataset
from retrieval_core.dataset.features import Features, FeatureView, ItemCounts
from retrieval_core.dataset.spec import DatasetSpec
from retrieval_core.dataset.split import ResolvedSplit

__all__ = [
    "MAX_ID_CHARS",
    "Dataset",
    "DatasetSpec",
    "Events",
    "FeatureView",
    "Features",
    "ItemCounts",
    "ResolvedSplit",
    "open_dataset",
]
