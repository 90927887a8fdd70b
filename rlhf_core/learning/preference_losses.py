"""Losses of the reward model: pure functions of scores, float in, float out. No model, settings or optimizer
here.

Sources: pairs, Bradley and Terry 1952; thumbs, design notes 2.2(c): a thumb is a noisy threshold on the same
score, with a learned slope, because thumbs of weak reliability would otherwise flatten what pairs taught.
"""

import torch
from torch import Tensor
from torch.nn import functional


def pair_losses(chosen_scores: Tensor, rejected_scores: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood [B] of each choice: with d = s_chosen - s_rejected,

    -(1 - eps) log sigma(d) - eps log sigma(-d). `label_smoothing` eps is the share of choices taken to be
    slips.
    """
    return _smoothed(chosen_scores - rejected_scores, label_smoothing)


def thumb_losses(
    scores: Tensor, up: Tensor, log_alpha: Tensor, threshold: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Negative log-likelihood [B] of each thumb, P(up) = sigma(alpha s - b).

    `scores` [B]; `up` [B] bool, True is a thumb up; `log_alpha` and `threshold` (b) are scalars.
    """
    logits = log_alpha.exp() * scores - threshold
    return _smoothed(torch.where(up, logits, -logits), label_smoothing)


def log_alpha_penalty(log_alpha: Tensor) -> Tensor:
    """Minus the log density of N(0, 1) at `log_alpha`, less its constant: the prior of the thumbs' slope."""
    return log_alpha.square() / 2


def centering_losses(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    """(s_chosen + s_rejected)^2 [B]: pins the level, which differences leave free (Eisenstein et al.
    2312.09244).
    """
    return (chosen_scores + rejected_scores).square()


def _smoothed(margins: Tensor, label_smoothing: float) -> Tensor:
    """Loss [B] of being right by `margins` [B]."""
    right, wrong = functional.logsigmoid(margins), functional.logsigmoid(-margins)
    return -(1.0 - label_smoothing) * right - label_smoothing * wrong
