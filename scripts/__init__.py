"""Command-line tools for runs and their results: python -m scripts.NAME"""
