"""What is added to each column's logit: masks by item, and logQ on one scale for all columns.

Masked (-inf), because it is no negative of the row's member:
- a column with the row's own positive item, other than the row's own column;
- a column with an item the member engaged with anywhere in the training part;
- a hard negative that is missing (-1).

logQ (Yi et al. 2019, doi 10.1145/3298689.3346996): a softmax over sampled columns estimates the softmax over all items
when a column's weight is divided by its expected count, N x its probability of being drawn:

    in-batch negative  s - log(N p)        hard negative  s - log(N q)        own positive  s

N is the number of in-batch columns, for both kinds: dividing only the in-batch ones would push them up by log(1 / N p),
4 to 8 for items of a catalogue of thousands, and the hard negatives would all but vanish from the gradient. The
positive is there with certainty, so it is not corrected. With `excluded`, p is p / (1 - p_positive), because a negative
is never the row's positive: the gradient is then that of arXiv 2507.09331, whose stop-gradient weight 1 - P(positive)
is what the softmax's own denominator yields (tests/unit/trainer/test_trainer_bias.py shows it).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval_trainer.examples import TrainingExamples
from retrieval_trainer.loss import ColumnBias
from retrieval_trainer.proposal import Proposals
from retrieval_trainer.sampling import Batch


def column_bias(
    examples: TrainingExamples,
    proposals: Proposals | None,
    *,
    rows: Batch,
    first_column: int,
    columns: NDArray[np.int32],
    hard: NDArray[np.int32],
    positive_correction: Literal["none", "excluded"],
) -> ColumnBias:
    """The biases of the B rows of one rank; row i's own positive is at in-batch column first_column + i.

    columns [N] are the items of the in-batch columns. hard is [B, H], each row's own, or [H], shared by all rows.
    Without proposals there is no correction, masks only.
    """
    member, item = rows.member, rows.item
    own_column = first_column + np.arange(len(member))
    in_batch = np.where(_is_no_negative(examples, member, item, columns[None, :]), -np.inf, 0.0)
    shared_or_own = hard if hard.ndim == 2 else np.broadcast_to(hard, (len(member), len(hard)))
    missing = (shared_or_own < 0) | _is_no_negative(examples, member, item, np.maximum(shared_or_own, 0))
    out_of_batch = np.where(missing, -np.inf, 0.0)
    if proposals is not None:
        log_n = np.log(len(columns))
        in_batch -= log_n + proposals.log_p[columns]
        out_of_batch -= log_n + proposals.log_q[np.maximum(shared_or_own, 0)]
        if positive_correction == "excluded":
            in_batch += np.log1p(-np.exp(proposals.log_p[item]))[:, None]
    in_batch[np.arange(len(member)), own_column] = 0.0
    return ColumnBias(torch.from_numpy(in_batch).float(), torch.from_numpy(out_of_batch).float())


def _is_no_negative(
    examples: TrainingExamples, member: NDArray[np.int32], item: NDArray[np.int32], columns: NDArray[np.int32]
) -> NDArray[np.bool_]:
    return np.asarray((columns == item[:, None]) | examples.has_engaged(member[:, None], columns))
