"""Readers in Python, for the data sets that rules cannot describe."""
