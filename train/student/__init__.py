"""The model that is trained.

``bitlinear`` is the quantizing layer; ``surgery`` turns a teacher into a student, ``calibration`` sets the
gains of its SubLN, ``fresh`` builds a model from scratch; ``checkpoint`` loads and saves master weights,
``pack`` writes packed checkpoints.
"""
