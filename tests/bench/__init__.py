"""`make bench`: what Facetstream's parts do against plain baselines, measured in the same run."""
