"""What the exercises and predictions of notebook 08 expect."""

EXERCISES: dict = {}
PREDICTIONS: dict = {}
