"""What region features read, in numbers: the analyses of the papers, as functions of tensors."""

from regio.analysis.dilation import FILTER_CLASSES, effective_dilation, filter_class
from regio.analysis.divergence import divergence, kl_between_parts, kl_of_mask, masks_to_cells
from regio.analysis.flops import LearnedFlops, LearnedSize, published_flops, separable_flops
from regio.analysis.object_sizes import SIZES, Statistic, by_class, size_class
from regio.analysis.sample_counts import count_cells, count_samples
from regio.analysis.trained import (
    MOST_PARTS,
    Divergences,
    divergence_of_checkpoints,
    divergence_of_detector,
    divergence_over_training,
    divergence_rows,
    extractor_of,
    measured_images,
    weights_by_level,
    write_divergences,
)

__all__ = [
    "FILTER_CLASSES",
    "MOST_PARTS",
    "SIZES",
    "Divergences",
    "LearnedFlops",
    "LearnedSize",
    "Statistic",
    "by_class",
    "count_cells",
    "count_samples",
    "divergence",
    "divergence_of_checkpoints",
    "divergence_of_detector",
    "divergence_over_training",
    "divergence_rows",
    "effective_dilation",
    "extractor_of",
    "filter_class",
    "kl_between_parts",
    "kl_of_mask",
    "masks_to_cells",
    "measured_images",
    "published_flops",
    "separable_flops",
    "size_class",
    "weights_by_level",
    "write_divergences",
]
