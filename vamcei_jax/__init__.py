"""Unsupervised domain adaptation for cardiac MR segmentation (VAMCEI, IEEE TMI 2024) in JAX and Flax."""

__version__ = "0.1.0"
