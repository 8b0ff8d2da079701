"""LoHa: updates that are Hadamard products of two low-rank products (Hyeon-Woo et al., 2021)."""
