"""Mathematics that more than one family needs: NumPy, float64."""
