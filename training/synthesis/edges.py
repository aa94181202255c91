"""Canny edges through whichever of OpenCV and scikit-image is installed."""

from __future__ import annotations

import importlib
import importlib.util

import numpy as np
from numpy.typing import NDArray

NEEDED = "control_canny needs opencv-python-headless or scikit-image: pip install opencv-python-headless"
DETECTORS = {"cv2": "OpenCV", "skimage": "scikit-image"}
"""Module -> package name, the preferred first."""
LOW, HIGH = 60, 160
"""Thresholds of the edge strength, 0..255; chosen, not published."""


def edge_detector() -> str | None:
    """The package that finds the edges, OpenCV before scikit-image; None if neither is installed."""
    return next((name for module, name in DETECTORS.items() if importlib.util.find_spec(module)), None)


def missing_edge_detector() -> str | None:
    """What to install, or None if there is an edge detector."""
    return NEEDED if edge_detector() is None else None


def canny(canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(height, width, 3) white edges on black of an RGB picture."""
    grey = np.round(canvas @ np.asarray([0.299, 0.587, 0.114])).astype(np.uint8)
    if importlib.util.find_spec("cv2"):
        edges = importlib.import_module("cv2").Canny(grey, LOW, HIGH) > 0
    elif importlib.util.find_spec("skimage"):
        feature = importlib.import_module("skimage.feature")
        edges = feature.canny(grey / 255, sigma=1.0, low_threshold=LOW / 1020, high_threshold=HIGH / 1020)
    else:
        raise ValueError(NEEDED)
    return np.repeat((edges * 255).astype(np.uint8)[..., None], 3, axis=2)
