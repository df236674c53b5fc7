"""The three tasks of the A-VL paper as seeded generators: caption, vqa and ocr.

Images are drawn here, so training, tests and evaluation need no download. Splits are disjoint by
construction: every sample's random stream is seeded with its split's name, and the handwritten
digits of the training split never appear in the held-out split.
"""

from avl_runtime.tasks.sample import TASKS, Sample, sample, samples

__all__ = ["TASKS", "Sample", "sample", "samples"]
