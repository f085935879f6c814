"""The loss of a stage.

``losses`` has the terms as pure functions and ``chunked`` their forms for large vocabularies; ``projector``
and ``router`` are trained together with the student; ``schedules`` has the ramps; ``checks`` rejects settings
that do not fit the models; ``objective`` puts it all together.
"""
