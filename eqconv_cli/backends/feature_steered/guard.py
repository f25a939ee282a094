"""When the factored softmax is trusted, the same for every framework.

With ea = exp(a - max a) and es = exp(s - max s) the denominator Z_e = Σ_m ea[i, m]·es[j, m] of an edge cannot overflow,
but it underflows when the two maxima lie at different m. As long as Z stays above a floor, what was flushed to 0 in a
factor is relatively nothing. Below it the edge is computed from its logits, with its own maximum.

The forward pass alone would allow 2^-60 in float32 and 2^-500 in float64. Automatic differentiation of w/Z forms w/Z²,
and its second derivative w/Z³; with these floors 1/Z³ is at most 2^120 and 2^990, still finite.
"""

from __future__ import annotations

#: Smallest trusted denominator, by dtype.
DENOMINATOR_FLOOR = {"float32": 2.0**-40, "float64": 2.0**-330}
