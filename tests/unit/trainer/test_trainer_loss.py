"""The loss and its gradients against a reference written with loops, from the equation in loss.py alone."""

from __future__ import annotations

import math

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor

from retrieval_trainer.loss import ColumnBias, Embeddings, contrastive_loss

TEMPERATURE = 0.07


def reference(members: Tensor, positives: Tensor, hard: Tensor, bias: ColumnBias, widths: list[int]) -> Tensor:
    """Mean over rows and widths of -log(exp(positive) / sum(exp(columns))), one cosine at a time; hard is [B, H, D]."""

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())

    rows = []
    for width in widths:
        for i, member in enumerate(members):
            denominator = torch.zeros((), dtype=members.dtype)
            for j, column in enumerate(positives):
                denominator += torch.exp(
                    cosine(member[:width], column[:width]) / TEMPERATURE + bias.in_batch[i, j].double()
                )
            for h in range(hard.shape[1]):
                logit = cosine(member[:width], hard[i, h, :width]) / TEMPERATURE + bias.hard[i, h].double()
                denominator += torch.exp(logit)
            rows.append(denominator.log() - cosine(member[:width], positives[i, :width]) / TEMPERATURE)
    return torch.stack(rows).mean()


def vectors(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def bias_of(rows: int, hard: int, *, masked: bool, corrected: bool) -> ColumnBias:
    generator = torch.Generator().manual_seed(3)
    in_batch, out = torch.zeros(rows, rows), torch.zeros(rows, hard)
    if corrected:
        in_batch, out = torch.randn(rows, rows, generator=generator), torch.randn(rows, hard, generator=generator)
    if masked:
        in_batch[0, 1] = in_batch[2, 0] = -math.inf
        out[1, 0] = -math.inf
    return ColumnBias(in_batch.fill_diagonal_(0.0), out)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("hard", [0, 2])
@pytest.mark.parametrize("widths", [[16], [16, 8, 3]])
def test_loss_and_gradients_equal_the_reference(masked: bool, corrected: bool, hard: int, widths: list[int]) -> None:
    inputs = [vectors(5, 16, seed=0), vectors(5, 16, seed=1), vectors(5, hard, 16, seed=2)]
    bias = bias_of(5, hard, masked=masked and hard > 0, corrected=corrected)
    expected = reference(*inputs, bias, widths)
    expected_gradients = torch.autograd.grad(expected, inputs, allow_unused=True)
    report = contrastive_loss(Embeddings(*inputs), bias, temperature=TEMPERATURE, dimensions=widths)
    gradients = torch.autograd.grad(report.loss, inputs, allow_unused=True)
    torch.testing.assert_close(report.loss, expected, rtol=1e-9, atol=1e-9, check_dtype=False)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        if wanted is not None:
            assert wanted.abs().sum() > 0 or wanted.numel() == 0, "a zero gradient would prove nothing"
            torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)


def test_a_masked_column_gets_no_gradient_and_no_weight() -> None:
    members, positives, hard = vectors(3, 8, seed=0), vectors(3, 8, seed=1), vectors(3, 2, 8, seed=2)
    bias = ColumnBias(torch.zeros(3, 3), torch.tensor([[-math.inf, 0.0], [0.0, 0.0], [-math.inf, 0.0]]))
    contrastive_loss(Embeddings(members, positives, hard), bias, temperature=0.05, dimensions=[8]).loss.backward()
    assert hard.grad is not None
    assert hard.grad[[0, 2], 0].abs().sum() == 0
    assert (hard.grad[[0, 1, 2], 1].abs().sum(dim=1) > 0).all()


def test_hard_negatives_shared_by_all_rows_equal_the_same_columns_given_to_each_row() -> None:
    members, positives, shared = vectors(4, 8, seed=0), vectors(4, 8, seed=1), vectors(6, 8, seed=2)
    bias = bias_of(4, 6, masked=False, corrected=True)
    by_all = contrastive_loss(Embeddings(members, positives, shared), bias, temperature=0.05, dimensions=[8, 4])
    each = shared[None].expand(4, 6, 8)
    own = contrastive_loss(Embeddings(members, positives, each), bias, temperature=0.05, dimensions=[8, 4])
    torch.testing.assert_close(by_all.loss, own.loss)
    torch.testing.assert_close(by_all.hard_gradient, own.hard_gradient)


def test_the_reported_share_and_rank_are_those_of_the_full_width() -> None:
    members = torch.eye(2)
    positives = torch.tensor([[1.0, 0.0], [1.0, 0.1]])  # the second member's positive is farther than the first's ...
    hard = torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]])  # ... and its hard negative is nearest
    report = contrastive_loss(
        Embeddings(members, positives, hard),
        ColumnBias(torch.zeros(2, 2), torch.zeros(2, 1)),
        temperature=1.0,
        dimensions=[2],
    )
    second = 0.1 / math.sqrt(1.01)
    first_row = [1.0, 1.0 / math.sqrt(1.01), 0.0]
    weights = [[math.exp(c) for c in row] for row in (first_row, [0.0, second, 1.0])]
    share = [[w / sum(row) for w in row] for row in weights]
    assert report.hard_gradient.item() == pytest.approx(share[0][2] + share[1][2], rel=1e-5)
    assert report.negative_gradient.item() == pytest.approx(
        share[0][1] + share[0][2] + share[1][0] + share[1][2], rel=1e-5
    )
    assert report.positive_rank.item() == 1 + 2


def test_it_equals_sentence_transformers_multiple_negatives_ranking_loss() -> None:
    """Without masks and logQ, and with every row's hard negatives as columns of all rows, it is their loss."""
    members, positives, hard = vectors(6, 16, seed=0), vectors(6, 16, seed=1), vectors(6, 16, seed=2)
    theirs = MultipleNegativesRankingLoss(model=None, scale=20.0)
    expected = theirs.compute_loss_from_embeddings([members, positives, hard], labels=None)
    bias = ColumnBias(torch.zeros(6, 6), torch.zeros(6, 6))
    ours = contrastive_loss(Embeddings(members, positives, hard), bias, temperature=0.05, dimensions=[16]).loss
    torch.testing.assert_close(ours, expected, check_dtype=False)
    inputs = [members, positives, hard]
    for found, wanted in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(found, wanted)
