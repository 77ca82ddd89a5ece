"""What the exercises and predictions of notebook 01 expect."""

EXERCISES: dict = {}
PREDICTIONS: dict = {}
