"""The texts that ``bitexport bench --draft`` decodes if the user gives none; the second half is measured."""

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
    """Return the group of a file."""
    if not os.path.exists(path):
        raise ValueError("no such file: %s" % path)
    return os.stat(path).st_gid


def device_of(path):
    """Return the device of a file."""
    if not os.path.exists(path):
        raise ValueError("no such file: %s" % path)
    return os.stat(path).st_dev


def links_of(path):
    """Return the number of links to a file."""
    if not os.path.exists(path):
        raise ValueError("no such file: %s" % path)
    return os.stat(path).st_nlink
'''

#: Prose in which hardly any two words stand together twice.
NOT_REPEATING = """\
Early in the morning a fisherman rowed past the lighthouse. Fog covered most of the harbour, gulls were
quarrelling over scraps, and somewhere behind him an engine coughed into life. He had promised his
daughter fresh mackerel for her birthday, and although three weeks of storms had emptied every net along
this coast, old Brannagh swore that shoals were gathering again beyond Seal Rock. When at last pale
sunlight broke through, it lit up water as flat as pewter. Gannets folded their wings and dropped like
thrown knives. There, between two drifting lobster pots, something silver turned over just below his
keel. Patiently, without lifting both eyes from that spot, he let out line, counted under breath, felt
one sharp tug and then nothing more. Perhaps tomorrow would bring better luck; meanwhile bread, cheese
and cold tea had to console him while ferries hooted far away, carrying tourists whose cameras glittered.
Nobody aboard noticed how small a boat can look against so much grey, or what it costs to promise
anything when weather decides. By noon clouds returned."""
