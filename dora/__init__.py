"""DoRA: magnitude and direction of a weight, trained apart (Liu et al., 2024)."""
