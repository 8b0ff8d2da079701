"""Small tools over finished runs: python -m scripts.NAME"""
