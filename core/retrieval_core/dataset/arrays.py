"""Names of the array types that a dataset is made of."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

BoolArray: TypeAlias = npt.NDArray[np.bool_]
Int32Array: TypeAlias = npt.NDArray[np.int32]  # row numbers of members and items
Int64Array: TypeAlias = npt.NDArray[np.int64]  # times in seconds, counts
IntegerArray: TypeAlias = npt.NDArray[np.integer[Any]]  # what a caller may pass for either
StringArray: TypeAlias = npt.NDArray[np.object_]
