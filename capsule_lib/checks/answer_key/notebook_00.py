"""What the exercises and predictions of notebook 00 expect."""

EXERCISES: dict = {}
PREDICTIONS: dict = {}
