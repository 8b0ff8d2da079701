"""BitFit: training the bias terms alone (Ben Zaken et al., 2022)."""
