"""Learning where a concept lives, and measuring how well that was learned."""

from .activations import activations, fit_pca
from .alignment import Alignment
from .batches import Batch
from .calls import evaluate_call, fit_call
from .evaluate import evaluate
from .fit import Fitted, fit
from .losses import cross_entropy, iia, kl_divergence, label_difference
from .progress import progress_bar
from .reader import Asked, Forward, Intervened
from .replaying import Replaying, precompute
from .scores import Interval, Scores, bootstrap
from .settings import FitError, Settings

__all__ = [
    "Alignment",
    "Asked",
    "Batch",
    "FitError",
    "Fitted",
    "Forward",
    "Interval",
    "Intervened",
    "Replaying",
    "Scores",
    "Settings",
    "activations",
    "bootstrap",
    "cross_entropy",
    "evaluate",
    "evaluate_call",
    "fit",
    "fit_call",
    "fit_pca",
    "iia",
    "kl_divergence",
    "label_difference",
    "precompute",
    "progress_bar",
]
