"""What the exercises and predictions of notebook 03 expect."""

EXERCISES: dict = {}
PREDICTIONS: dict = {}
