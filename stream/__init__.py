"""Facetstream's running system: Kafka events -> packed histories in Redis -> interests by Triton -> Qdrant."""
