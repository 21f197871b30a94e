"""The model of Dawid and Skene (1979): true labels and each annotator's confusion matrix, by EM.

A. P. Dawid and A. M. Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, Applied
Statistics 28 (1979), 20-28, https://doi.org/10.2307/2346806.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from rlhf_cli.feedback.quality.votes import FloatArray, IntArray

ITERATIONS = 1000
TOLERANCE = 1e-9  # largest change of a posterior in the last iteration
SMALLEST = 1e-10  # a smaller prior, or count of an observed label, is raised to this, as crowd-kit does


class DawidSkene(NamedTuple):
    """Estimates of the model.

    Attributes:
        posterior: Probability of each class of each task. Shape: (T, C)
        prior: Probability of each class. Shape: (C,)
        confusion: Probability that an annotator answers a label if the class is the true one.
            Shape: (W, C labels, C classes)
        iterations: Number of EM iterations.
    """

    posterior: FloatArray
    prior: FloatArray
    confusion: FloatArray
    iterations: int

    @property
    def skill(self) -> FloatArray:
        """The probability that an annotator's next label is right. Shape: (W,)."""
        skill: FloatArray = np.einsum("wcc,c->w", self.confusion, self.prior)
        return skill


def dawid_skene(
    task: IntArray,
    annotator: IntArray,
    label: IntArray,
    classes: int,
    *,
    known: IntArray | None = None,
    symmetric: bool = False,
    pseudo_counts: FloatArray | float = 0.0,
    iterations: int = ITERATIONS,
) -> DawidSkene:
    """Estimate true labels and confusion matrices; start from each task's shares of votes.

    Args:
        task: Index of the task of each vote, 0 to T - 1, each with a vote or a known class. Shape: (V,)
        annotator: Index of the annotator, 0 to W - 1, each with a vote. Shape: (V,)
        label: Index of the label, 0 to C - 1. Shape: (V,)
        classes: Number of labels, C.
        known: The true class of each task, or -1 if unknown; None: all are unknown. Shape: (T,)
        symmetric: Estimate as if each task were also given with its labels in reversed order. Then swapping the
            completions of pairs swaps their labels, and changes nothing else.
        pseudo_counts: Added to the counts behind each confusion matrix, as if each annotator had answered further tasks
            with a known class. Shape: (C labels, C classes)
        iterations: Limit on the EM iterations, at least 1.
    """
    tasks = len(known) if known is not None else int(task.max()) + 1
    workers = int(annotator.max()) + 1
    fixed = np.flatnonzero(known >= 0) if known is not None else np.arange(0)
    fixed_rows = np.eye(classes)[known[fixed]] if known is not None else np.zeros((0, classes))
    cells = csr_array((np.ones(len(task)), (task, annotator * classes + label)), shape=(tasks, workers * classes))

    def total_by_worker(posterior: FloatArray) -> FloatArray:
        counts: FloatArray = np.asarray(cells.T @ posterior).reshape(workers, classes, classes)
        return counts + counts[:, ::-1, ::-1] if symmetric else counts

    def maximize(posterior: FloatArray) -> tuple[FloatArray, FloatArray]:
        prior = posterior.mean(0)
        counts = np.where(is_used, np.maximum(total_by_worker(posterior), SMALLEST), 0.0) + pseudo_counts
        return (prior + prior[::-1]) / 2 if symmetric else prior, counts / counts.sum(1, keepdims=True)

    def expect(prior: FloatArray, confusion: FloatArray) -> FloatArray:
        log_confusion = np.log(confusion, out=np.zeros_like(confusion), where=confusion > 0)
        log_prior = np.where(is_possible, np.log(np.maximum(prior, SMALLEST)), -np.inf)
        log_likelihood = log_prior + cells @ log_confusion.reshape(-1, classes)
        # By column, as reductions along the short axis take many times as long.
        likelihood = np.exp(log_likelihood - reduce(np.maximum, log_likelihood.T)[:, None])
        posterior: FloatArray = likelihood / reduce(np.add, likelihood.T)[:, None]
        posterior[fixed] = fixed_rows
        return posterior

    votes = np.bincount(task * classes + label, minlength=tasks * classes).reshape(tasks, classes)
    posterior = votes / np.maximum(votes.sum(1, keepdims=True), 1)
    posterior[fixed] = fixed_rows
    is_possible = posterior.any(0) | (posterior.any(0)[::-1] if symmetric else False)
    is_used = total_by_worker(np.ones((tasks, classes))) > 0
    prior, confusion = maximize(posterior)
    done, change = 0, np.inf
    while done < iterations and change > TOLERANCE:
        last, posterior = posterior, expect(prior, confusion)
        prior, confusion = maximize(posterior)
        done, change = done + 1, np.abs(posterior - last).max()
    return DawidSkene(posterior, prior, confusion, done)
