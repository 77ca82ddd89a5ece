"""The one line that ends every exercise."""

from capsule_lib.checks.exercises.answer_key import Expected, look_up
from capsule_lib.checks.exercises.record import record
from capsule_lib.checks.verdict import Verdict


def answer(key: str, given) -> Verdict:
    """Compare an answer with what the exercise expects: a number, a choice, or the reader's own function.

    A right one counts in `checks.progress()`. None and ..., alone or in a list, mean that there is no answer yet.

    Raises:
        KeyError: there is no such exercise.
    """
    expected = look_up("exercises", key)
    if _is_stub(given):
        return Verdict(None, "not answered yet")
    try:
        verdict = expected.judge(given) if isinstance(expected, Expected) else expected(given)
    except Exception as error:
        return Verdict(False, f"this answer can't be checked: {type(error).__name__}: {error}")
    return Verdict(True, verdict.message + record("exercises", key)) if verdict else verdict


def _is_stub(given) -> bool:
    parts = given.values() if isinstance(given, dict) else given if isinstance(given, list | tuple) else ()
    return given is None or given is ... or any(map(_is_stub, parts))
