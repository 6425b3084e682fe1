"""Published results of the ASTRA paper and of related work, beside results of this testbed."""
