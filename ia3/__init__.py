"""(IA)3: learned factors on keys, values and feed-forward activations (Liu et al., 2022)."""
