"""Prefix tuning (Li & Liang, 2021) on encoders."""
