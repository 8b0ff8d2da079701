"""LN tuning: training the LayerNorms alone (Qi et al., 2022)."""
