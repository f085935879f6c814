"""Training ternary language models: teachers, and students that ``bitexport convert`` takes as they are.

transformers' Trainer does the training; ``bitexport train`` and ``python -m bitexport train`` start it.
"""
