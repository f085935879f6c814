"""Tries to kill, fill, hang and fool bitexport, for as long as it is told: ``make torture``.

Each module of :mod:`tests.torture.kinds` is one kind of torture. A case is one execution of it, and follows
from the seed and its number alone, so that any case can be done again. Cases run in forked processes
(:mod:`.workers`), which are forked from one that has imported everything, and are told one number at a time
(:mod:`.schedule`). docs/security.md says what is promised.
"""
