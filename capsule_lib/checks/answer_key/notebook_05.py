"""What the exercises and predictions of notebook 05 expect."""

EXERCISES: dict = {}
PREDICTIONS: dict = {}
