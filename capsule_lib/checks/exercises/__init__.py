"""What an exercise of the course needs besides the checkers: its one line, what is right, predictions, the reader's record.

Readers and notebooks use all of it through `checks`; only the tests look in here. Checkers that serve a single exercise, and
have no other use, live here too: `formulas`, `found`, `measures`, `equivariance`.
"""
