"""Everything that turns points of a grid into measured rows: inputs, one cluster, verification, calibration."""
