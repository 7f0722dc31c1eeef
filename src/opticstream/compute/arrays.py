"""Formulas for arrays of any library that follows the Python array API: NumPy, or CuPy on a graphics card.

A formula takes its functions from `library_of` its arguments, so that it is written once for all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj, is_cupy_array
from array_api_compat import numpy as numpy_library
from numpy.typing import NDArray

__all__ = ["in_numpy", "library_of"]


def library_of(*values: Any) -> Any:
    """Return the namespace of the library that arrays belong to; NumPy's for numbers and lists.

    Raises
    ------
    TypeError
        The arrays belong to different libraries.

    Examples
    --------
    >>> library_of([1.0, 2.0]).asarray([1.0, 2.0]) + 1
    array([2., 3.])
    """
    arrays = [value for value in values if is_array_api_obj(value)]
    return array_namespace(*arrays) if arrays else numpy_library


def in_numpy(array: Any, /) -> NDArray[Any]:
    """Return an array of any library as one of NumPy; from a card it is copied.

    Examples
    --------
    >>> in_numpy(np.ones(2))
    array([1., 1.])
    """
    return np.asarray(array.get() if is_cupy_array(array) else array)
