"""Chat templates that take all memory or time while they are compiled or rendered, by what they do."""

from __future__ import annotations

#: Need gigabytes while they are rendered, and most of them when jinja2 compiles them.
MEMORY = {
    "text": "{{ 'a' * (3 * 10**9) }}",
    "list": "{{ ([0] * 10**9) | length }}",
    "filter": "{{ 'a' | center(10**10) }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "method": "{{ 'a'.ljust(10**10) }}",
    "replaced": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "batch": "{{ 'a' | batch(10**9, 'x') | list }}",
    "indent": "{{ [1, 2] | tojson(indent=10**9) }}",
    "condition": "{% if 'a' * (3 * 10**9) %}b{% endif %}",
    "doubled": (
        "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
    ),
}

#: Take hours to render.
TIME = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 10 ** (10 ** 9) }}",
    "random text": "{{ lipsum(n=10**7) }}",
}

#: Cannot be compiled, by the name of what is wrong.
BROKEN = {
    "is nested more than 100 levels deep": (
        "{% if a %}" * 300 + "{% endif %}" * 300,
        "{{ " + "(" * 300 + "a" + ")" * 300 + " }}",
        "{{ " + "[" * 300 + "]" * 300 + " }}",
        "{{ " + "not " * 2000 + "a }}",
        "{{ " + "-" * 2000 + "a }}",
        "{{ a" + " + a" * 2000 + " }}",
        "{{ a" + ".b" * 2000 + " }}",
        "{{ a" + " | e" * 2000 + " }}",
        "{{ " + "a if b else " * 2000 + "c }}",
    ),
    "parts; expected at most 10000": (
        "{{ a }}" * 15_000,
        "{{ " + "a ~ " * 15_000 + "a }}",
        "{% set a = [" + "1," * 15_000 + "] %}",
    ),
    "characters; expected at most 131072": ("a" * 60_000_000, "{{ '" + "a" * 200_000 + "' }}"),
    "is damaged": (
        "{% for a in b %}" * 25 + "{% endfor %}" * 25,  # more than Python can nest
        "{{ " + "1" * 5000 + " }}",
        "{% for m in messages %}{{ m }}",
        "{{ a | nosuchfilter }}",
        "{{ '",
        "{# a",
        "{% raw %} a",
        "{% break %}",
    ),
}
