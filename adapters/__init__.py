"""Bottleneck adapters (Houlsby et al., 2019), their later placements, and AdapterDrop (Rücklé et al., 2021)."""
