"""What is fitted to the features of regions instead of trained by gradients: linear SVMs and ridge regressions."""

from regio.fitting.feature_store import FeatureStore, Layer
from regio.fitting.labels import LabelledRegions, label_regions
from regio.fitting.linear_svm import HardNegativeMining, LinearClassifiers
from regio.fitting.ridge import BoxRegression, BoxRegressors

__all__ = [
    "BoxRegression",
    "BoxRegressors",
    "FeatureStore",
    "HardNegativeMining",
    "LabelledRegions",
    "Layer",
    "LinearClassifiers",
    "label_regions",
]
