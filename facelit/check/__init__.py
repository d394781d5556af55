"""What is wrong with a set of crops: broken, duplicate or mislabelled images, and people who are in a test set too."""
