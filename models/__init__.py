"""Facetstream's models: item tower, residual codebook, user interests; and the contract by which they are served."""
