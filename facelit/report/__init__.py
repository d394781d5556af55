"""Scored pairs and runs -> one HTML page for people to look at."""
