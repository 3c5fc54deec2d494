"""Array types for the r x q algebra, which uses numpy in float64. Everything of size d or m is a torch tensor."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ComplexArray = npt.NDArray[np.float64] | npt.NDArray[np.complex128]
