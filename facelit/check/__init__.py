"""Finds what is wrong with a set of crops: broken, duplicate or mislabelled images, or people who are in a test set too."""
