"""Quality, memory and arithmetic of policies, measured side by side on the same cases."""

from avl_runtime.evaluate.cases import Case, CaseError, read_cases, task_cases
from avl_runtime.evaluate.measure import Measured, measure

__all__ = ["Case", "CaseError", "Measured", "measure", "read_cases", "task_cases"]
