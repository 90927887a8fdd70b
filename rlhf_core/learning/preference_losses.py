"""Likelihoods of judgements given scores: pure functions, float in, float out. No model, settings or optimizer here.

Sources: pairs, Bradley and Terry 1952; ties, Rao and Kupper 1967; thumbs, side bias and raters, the project's design
notes 2.2(a) to (c): a thumb is a noisy threshold on the same score, with a learned slope, because thumbs of weak
reliability would otherwise flatten what pairs taught.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

LEFT: Final = 0
RIGHT: Final = 1
TIE: Final = 2
"""Outcomes of a comparison."""


def pair_logits(
    left_scores: Tensor, right_scores: Tensor, log_slopes: Tensor | float = 0.0, biases: Tensor | float = 0.0
) -> Tensor:
    """z [B] = a_k (s_left - s_right) + c: how strongly rater k leans to the left answer.

    `log_slopes` are log a_k, the raters' reliability; `biases` the side bias, c_0 + c_k, which is zero for whoever
    does not look at the side. [B] or numbers.
    """
    return torch.as_tensor(log_slopes).exp() * (left_scores - right_scores) + biases


def pair_logprobs(logits: Tensor, eta: Tensor) -> Tensor:
    """Log probabilities [B, 3] of left, right and tie under Rao and Kupper's model; `eta` >= 0 is a scalar.

    P(left) = sigma(z - eta), P(right) = sigma(-z - eta), P(tie) = (e^(2 eta) - 1) P(left) P(right). They sum to 1;
    eta = 0 knows no ties and is the model of Bradley and Terry.
    """
    left, right = functional.logsigmoid(logits - eta), functional.logsigmoid(-logits - eta)
    return torch.stack([left, right, _log_tie_factor(eta) + left + right], dim=-1)


def pair_losses(
    logits: Tensor,
    outcomes: Tensor,
    eta: Tensor,
    margins: Tensor | float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood [B] of `outcomes` [B] (LEFT, RIGHT or TIE) given `logits` [B] of the left side.

    A decisive choice must lead by its margin m (Llama 2): z - m stands for z of the chosen side. `label_smoothing` is
    the share of decisive choices taken to be slips; a tie has nothing to slip to.
    """
    lead = torch.where(outcomes == RIGHT, -logits, logits) - margins
    right, wrong = functional.logsigmoid(lead - eta), functional.logsigmoid(-lead - eta)
    decisive = -(1.0 - label_smoothing) * right - label_smoothing * wrong
    both = functional.logsigmoid(logits - eta) + functional.logsigmoid(-logits - eta)
    return torch.where(outcomes == TIE, -_log_tie_factor(eta) - both, decisive)


def reversed_outcomes(outcomes: Tensor) -> Tensor:
    """What a rater meant who says the opposite, [B]; the opposite of a tie is a tie."""
    return torch.where(outcomes == TIE, outcomes, 1 - outcomes)


def thumb_logits(scores: Tensor, log_alpha: Tensor, threshold: Tensor, strictness: Tensor | float = 0.0) -> Tensor:
    """Log odds [B] of a thumb up, alpha s - b - b_k; `strictness` b_k is the rater's own part of the threshold."""
    return log_alpha.exp() * scores - threshold - strictness


def thumb_losses(logits: Tensor, up: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood [B] of thumbs with these log odds [B]; `up` [B] bool, True is a thumb up."""
    lead = torch.where(up, logits, -logits)
    right, wrong = functional.logsigmoid(lead), functional.logsigmoid(-lead)
    return -(1.0 - label_smoothing) * right - label_smoothing * wrong


def normal_penalty(values: Tensor, std: float = 1.0) -> Tensor:
    """Minus the log density of N(0, std^2) at `values`, summed, less its constant."""
    return (values / std).square().sum() / 2


def centering_losses(left_scores: Tensor, right_scores: Tensor) -> Tensor:
    """(s_left + s_right)^2 [B]: pins the level, which differences leave free (Eisenstein et al. 2312.09244)."""
    return (left_scores + right_scores).square()


def _log_tie_factor(eta: Tensor) -> Tensor:
    """log(e^(2 eta) - 1); about -87 instead of minus infinity where there are no ties."""
    eta = torch.as_tensor(eta)
    return torch.expm1(2.0 * eta).clamp_min(torch.finfo(torch.float32).tiny).log()
