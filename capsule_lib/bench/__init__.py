"""The benchmark, `python -m capsule_lib.bench`. From outside: `main`, the command, and the forms of routing that it compares."""

from capsule_lib.bench.measure import (
    FORMS,
    EinsumCaps,
    NaiveCaps,
    in_own_process,
    main,
    measure_layer,
    measure_step,
    with_form,
)

__all__ = ["FORMS", "EinsumCaps", "NaiveCaps", "in_own_process", "main", "measure_layer", "measure_step", "with_form"]
