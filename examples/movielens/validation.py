"""What the settings of movielens.yaml were chosen by: validation members only, in pools like those of the evaluation.

    python examples/movielens/validation.py DATASET BUNDLE GENERATION

The evaluation asks all members but the validation part; here that mask is turned around, and the rest is its own code.
No test member is asked. Beside the model: popularity, and a linear model of the same training parts (EASE) that shows
what is there to be found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from retrieval_core.dataset import Dataset, open_dataset
from retrieval_indexer.evaluation.answers import Answers, Metric, collect_answers, metrics_for
from retrieval_indexer.evaluation.bootstrap import paired_bounds
from retrieval_indexer.evaluation.evaluation_set import EvaluationSet, build_evaluation_set
from retrieval_indexer.evaluation.pools import draw_pools
from retrieval_indexer.evaluation.scorers import PopularityScorer, Stack, StackScorer

CONFIDENCE = 0.95
CORPUS_K = 100
# Of EASE. 200 and 1000 were tried, and differ by 0.01 in either direction.
RIDGE = 1000.0
# Items with fewer training positives are left to popularity: it keeps the inverse at 2,500 x 2,500.
FEWEST_POSITIVES = 3


class LinearScorer:
    """EASE (arXiv 1905.03375): every item a ridge regression on the member's other items, in closed form.

    It learns from the training parts of all members at any time, as the weights of the language model do.
    """

    def __init__(self, dataset: Dataset) -> None:
        events = dataset.events
        train = events.engaged & ~events.is_test
        self._engaged = np.zeros((len(dataset.member_ids), len(dataset.item_ids)), dtype=np.float32)
        self._engaged[events.member[train], events.item[train]] = 1
        self._popularity = self._engaged.sum(axis=0)
        self._items = np.flatnonzero(self._popularity >= FEWEST_POSITIVES)
        known = self._engaged[:, self._items].astype(np.float64)
        inverse = np.linalg.inv(known.T @ known + RIDGE * np.eye(len(self._items)))
        self._weights = -inverse / np.diag(inverse)
        np.fill_diagonal(self._weights, 0.0)

    def scores(self, evaluation: EvaluationSet) -> Iterator[NDArray[np.float64]]:
        """One array [n] per member; rarer items follow by popularity. All items of the data are in the corpus."""
        for member in evaluation.members:
            found = 1e-6 * self._popularity.astype(np.float64)
            found[self._items] += self._engaged[member, self._items] @ self._weights
            yield found


def cells(metric: Metric, subject: Answers, popularity: Answers) -> tuple[str, str]:
    """The value, and its paired difference to popularity."""
    ours, theirs = subject.values[metric], popularity.values[metric]
    known = np.isfinite(ours) & np.isfinite(theirs)
    bounds = paired_bounds(ours[known], theirs[known], confidence=CONFIDENCE, seed=0)
    return f"{ours[known].mean():.3f}", f"{bounds.mean:+.3f} ({bounds.lower:+.3f} to {bounds.upper:+.3f})"


def validation(
    dataset: Annotated[str, typer.Argument(help="The imported dataset.")],
    bundle: Annotated[str, typer.Argument(help="A bundle trained on it.")],
    generation: Annotated[str, typer.Argument(help="The bundle's evaluation generation (retrieval-index build).")],
) -> None:
    """Compare a model with popularity on the validation members."""
    everything = open_dataset(dataset)
    tuning = replace(everything, is_validation_member=~everything.is_validation_member)
    stack = Stack.open(bundle, generation)
    evaluation = build_evaluation_set(tuning, stack.generation)
    pools, metrics = draw_pools(evaluation), metrics_for([CORPUS_K])
    scorers = {"model": StackScorer(stack), "popularity": PopularityScorer(), "EASE": LinearScorer(tuning)}
    answers = {name: collect_answers(scorer, evaluation, pools, metrics) for name, scorer in scorers.items()}
    table = Table(title=f"{len(evaluation)} validation members; differences to popularity, 95 % one-sided bounds")
    for heading in ("metric", "popularity", "model", "difference", "EASE", "difference"):
        table.add_column(heading)
    for metric in metrics:
        shown = [cells(metric, answers[name], answers["popularity"]) for name in ("popularity", "model", "EASE")]
        table.add_row(str(metric), shown[0][0], *shown[1], *shown[2])
    Console().print(table)


if __name__ == "__main__":
    typer.run(validation)
