"""Types of NumPy arrays for annotations."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "FloatArray"]

Array = np.ndarray[Any, np.dtype[Any]]
"""A NumPy array of any shape and type."""

FloatArray = npt.NDArray[np.float64]
"""A NumPy array of float64."""
