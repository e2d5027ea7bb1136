"""Learning where a concept lives, and measuring how well that was learned."""

from .activations import activations, attention_tensor, fit_pca
from .alignment import Alignment
from .batches import Batch
from .compare import Comparison, compare
from .evaluate import evaluate, evaluate_call
from .fit import Fitted, fit, fit_call, progress_bar
from .forward import BatchForward, CachedForward, FullForward, Intervened, LogitRequest, precompute
from .forward import BatchForward as Forward
from .forward import CachedForward as Replaying
from .forward import LogitRequest as Asked
from .losses import cross_entropy, iia, kl_divergence, label_difference
from .scores import Interval, Scores, bootstrap
from .settings import FitError, Settings

__all__ = [
    "Alignment",
    "Asked",
    "Batch",
    "BatchForward",
    "CachedForward",
    "Comparison",
    "FitError",
    "Fitted",
    "Forward",
    "FullForward",
    "Interval",
    "Intervened",
    "LogitRequest",
    "Replaying",
    "Scores",
    "Settings",
    "activations",
    "attention_tensor",
    "bootstrap",
    "compare",
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
