"""The texts that ``bitexport bench --draft`` continues if the user gives none."""

#: Code that is written again with small changes, as an editor's assistant does it.
REPEATING = '''\
import os


def size_of(path):
    """Return the size of a file."""
    if not os.path.exists(path):
        raise ValueError("no such file: %s" % path)
    return os.stat(path).st_size


def owner_of(path):
    """Return the owner of a file."""
    if not os.path.exists(path):
        raise ValueError("no such file: %s" % path)
    return os.stat(path).st_uid


def mode_of(path):
    """Return the mode of a file."""
    if not os.path.exists(path):
        raise ValueError("no such file: %s" % path)
    return os.stat(path).st_mode


def group_of(path):
'''

#: Prose in which hardly any two words stand together twice.
NOT_REPEATING = """\
Early in the morning a fisherman rowed past the lighthouse. Fog covered most of the harbour, gulls were
quarrelling over scraps, and somewhere behind him an engine coughed into life. He had promised his daughter
fresh mackerel for her birthday"""
