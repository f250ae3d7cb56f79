"""Templates that try to get out, to run forever, to grow or to print without end: all stopped, all in time."""

from __future__ import annotations

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from quintet.chat import limits, sandbox
from quintet.chat.limits import Limits
from quintet.chat.template import apply_chat_template
from quintet.errors import ChatError

CHAT = [{"role": "user", "content": "Hi", "list": [1, 2], "update": "key"}]


def render(template: str, seconds: float = 0.5) -> str:
    return apply_chat_template([CHAT], template, limits=Limits(seconds=seconds))[0][0]


# Known ways out of template engines and of Jinja's sandbox.
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__class__'] }}",
    "{{ ''['__cl' ~ 'ass__'] }}",
    "{{ ()['\\x5f\\x5fclass\\x5f\\x5f'] }}",
    "{{ messages.__class__ }}",
    "{{ messages[0].__class__.__base__ }}",
    "{{ messages[0]['__class__'] }}{{ messages.__len__ }}",
    "{{ messages[0].items.__self__ }}",
    "{{ messages[0].get.__func__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['__builtins__'] }}",
    "{{ range.__call__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ dict.__base__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.parent }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ url_for.__globals__ }}",
    "{{ config.items() }}",
    "{{ get_flashed_messages.__globals__ }}",
    "{{ request.application.__globals__ }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    # CVE-2014-0012 / CVE-2016-10745 / CVE-2019-10906: str.format and str.format_map
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{{ '{a.__class__}'.format(a=1) }}",
    "{{ '{0[__class__]}'.format(messages) }}",
    "{{ '{x.__class__}'.format_map({'x': 1}) }}",
    "{{ ''.format_map }}{{ ''.format_map({}) }}",
    "{{ '{0.__class__}'|format(1) }}{{ ''|attr('__class__') }}",
    # CVE-2024-56326: format by way of a filter that keeps a reference to it
    "{{ ['{0.__class__}'.format]|map('first')|list }}",
    "{% set f = '{0.__class__.__mro__}'.format %}{{ f(1) }}",
    "{% macro call(f) %}{{ f(1) }}{% endmacro %}{{ call('{0.__class__}'.format) }}",
    "{% set ns = namespace(f='{0.__class__}'.format) %}{{ ns.f(1) }}",
    # CVE-2025-27516: |attr, and map(attribute=...)
    "{{ '{0.__class__}'|attr('format')(1) }}",
    "{{ messages|attr('__class__') }}",
    "{{ ['']|map(attribute='__class__')|list }}",
    "{{ ['']|map(attribute='format')|list|first()(1) }}{{ ''.__doc__ }}",
    "{{ ['']|groupby('__class__') }}",
    "{{ ['']|sort(attribute='__class__') }}",
    "{{ ['']|selectattr('__class__')|list }}",
    "{{ ['']|sum(attribute='__class__') }}",
    "{{ ['']|unique(attribute='__class__')|list }}",
    "{{ [1]|map('attr', '__class__')|list }}",
    "{{ ''|tojson|map(attribute='__class__')|list }}",
    # CVE-2024-22195 / CVE-2024-34064: filters that are not there
    "{{ {'a b': 1}|xmlattr }}",
    "{{ messages|pprint }}",
    "{{ ''|random }}",
    # names with two underscores through a namespace, a macro, a loop, a caller
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% set ns = namespace(__init__=1) %}",
    "{% set ns = namespace({'_x': 1}) %}",
    "{% set ns = namespace() %}{{ ns.__dict__ }}",
    "{% set ns = namespace() %}{{ ns._Namespace__attrs }}",
    "{% macro m() %}{% endmacro %}{{ m.__call__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func }}",
    "{% macro m() %}{{ caller.__class__ }}{% endmacro %}{% call m() %}{% endcall %}",
    "{% for a in [1] %}{{ loop.__class__ }}{% endfor %}",
    "{% for a in [1] %}{{ loop._iterable }}{% endfor %}",
    "{% macro m() %}{{ varargs.__class__ }}{% endmacro %}{{ m(1) }}",
    # changing what the caller gave
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{{ messages.pop() }}",
    "{{ messages[0].update({'role': 'system'}) }}",
    "{{ messages[0].setdefault('x', 1) }}",
    "{{ messages[0].pop('role') }}",
    "{% set messages[0].role = 'system' %}",
    # other templates, other code
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{% from 'x' import y %}",
    "{% do messages.append(1) %}",
    "{% debug %}",
    "{{ undefined_function() }}",
    "{{ 'a'.encode('utf-8') }}",
    "{{ 'a'.translate({}) }}",
    "{{ (1).__class__ }}",
    "{{ (1).to_bytes(1) }}",
    "{{ true.real.__class__ }}",
    "{{ 1.5.hex() }}",
    "{{ dict.fromkeys([1]) }}",
    "{{ range(3).start.__class__ }}",
    "{{ range.stop() }}",
    "{{ messages|map('upper')|map(attribute='gi_frame')|list }}{{ (messages|map('length')).gi_frame.f_globals }}",
]


@pytest.mark.parametrize("template", ESCAPES, ids=range(len(ESCAPES)))
def test_ways_out_are_closed(template: str) -> None:
    with pytest.raises(ChatError, match="^The chat template (tries|is not|fails|formats|sums)"):
        render(template)
    assert CHAT == [{"role": "user", "content": "Hi", "list": [1, 2], "update": "key"}]


ENDLESS = [
    "{% for a in range(10**9) %}x{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{{ a }}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% else %}{% for c in range(99999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{% for a in [[1]] recursive %}{{ loop([a]) }}{% endfor %}",
    "{% macro m(n) %}{{ m(varargs, varargs) }}{% endmacro %}{{ m(1) }}",
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ (0,) * 10**9 }}",
    "{{ 10**(10**10) }}",
    "{{ 2**(2**62) }}",
    "{% set ns = namespace(n=3) %}{% for a in range(64) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "{% set ns = namespace(n=3) %}{% for a in range(64) %}{% set ns.n = ns.n ** 3 %}{% endfor %}{{ ns.n }}",
    "{% set ns = namespace(s='ab') %}{% for a in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s='ab') %}{% for a in range(64) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
    "{% set ns = namespace(s='a') %}{% for a in range(64) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for a in range(64) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for a in range(64) %}{% set ns.s = ns.s|replace('a', ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for a in range(64) %}{% set ns.s = ns.s.join(ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for a in range(64) %}{% set ns.s = ns.s|join(ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for a in range(64) %}{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for a in range(64) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='ab') %}{% for a in range(64) %}{% set ns.s = ns.s|urlencode|escape|tojson %}"
    "{% set ns.s = ns.s ~ '<' ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(l=[1]) %}{% for a in range(64) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "{% set ns = namespace(l=[1]) %}{% for a in range(64) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(l=(1,)) %}{% for a in range(64) %}{% set ns.l = (ns.l, ns.l) %}{% endfor %}{{ {ns.l: 1} }}",
    "{% set ns = namespace(l={}) %}{% for a in range(64) %}{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% endfor %}",
    "{% set ns = namespace(l={}) %}{% for a in range(64) %}{% set ns.l = dict(a=ns.l, b=ns.l) %}{% endfor %}{{ ns.l }}",
    "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(64) %}{% set ns.a = [ns.a, ns.a] %}"
    "{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns.x.x }}{{ [ns]|string }}",
    "{{ 'a'|center(10**9) }}",
    "{{ 'a'|center(width=10**9) }}",
    "{{ 'a'.center(10**9) }}{{ 'a'.ljust(10**9) }}",
    "{{ 'a'.zfill(10**9) }}",
    "{{ '\t'.expandtabs(10**9) }}",
    "{{ ('\\n' * 10000)|indent(width=9999) }}",
    "{{ ('\\n' * 10000)|indent('x' * 9999) }}",
    "{{ 'abc'|batch(10**9, 'x')|list }}",
    "{% set s = 'x' * 10**6 %}{{ 'abc'|batch(10000, s)|list }}",
    "{% set s = 'x' * 10**6 %}{% for row in 'abc'|batch(10000, s) %}{{ row }}{% endfor %}",
    "{{ 'abc'|slice(10**9)|list }}",
    "{{ ('a' * 10**6)|list }}",
    "{{ ('a ' * 8000000).split() }}",
    "{{ ('9' * 10**6)|int }}",
    "{{ '%99999999d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%.999999999f' % 1 }}",
    "{{ '%(a)99999999d' % {'a': 1} }}",
    "{{ '%(" + "a" * 200 + ")99999999d' % {'" + "a" * 200 + "': 1} }}",
    "{{ ('{' ~ ' ' * 10**6).format() }}",
    "{{ (':' * 10**6).format() }}",
    "{{ ('%(' * 10**6) % {} }}",
    "{{ '%99999999d'|format(1) }}",
    "{{ '{:>99999999}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10**9) }}",
    "{{ '{:>{w}}'.format(1, w=10**9) }}",
    "{{ [1]|tojson(indent=10**4) }}",
    "{{ [1, 2]|tojson(separators=('x' * 10**6, ':')) }}",
    "{{ strftime_now('%1000000000d') }}",
    "{{ strftime_now('%c' * 10**6) }}",
    "{{ range(10**30) }}",
    "{{ range(0, 0 - 10**30, -1) }}",
    "{{ ([[1]] * 1000)|sum(start=[]) }}",
    "{{ raise_exception('x' * 10**7) }}",
    "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "{% for a in [1] %}" * 40 + "{% endfor %}" * 40,
    "{{ a" + ".b" * 20000 + " }}",
    "{{ a" + "|upper" * 20000 + " }}",
    "{{a}}" * 50000,
    "{{ a" + "~1" * 100000 + " }}",
    "x" * (Limits().template + 1),
]
# It prints once, which is no crime; what counts is that it ends.
HARMLESS = "{% set ns = namespace() %}{% set ns.x = ns %}"


@pytest.mark.parametrize("template", ENDLESS, ids=range(len(ENDLESS)))
def test_templates_that_run_grow_or_print_forever_are_stopped(template: str) -> None:
    tracemalloc.start()
    start = time.monotonic()
    try:
        if template.startswith(HARMLESS):
            assert len(render(template)) < 1000
        else:
            with pytest.raises(ChatError, match="^The chat template "):
                render(template)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.monotonic() - start < 30  # tracing memory makes it many times slower than it is
    assert peak < 700 * 2**20


def test_the_clock_is_what_stops_a_loop() -> None:
    start = time.monotonic()
    with pytest.raises(ChatError, match=r"did not end within 0\.2 seconds and was stopped"):
        render("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", seconds=0.2)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (Limits(template=10), "has 55 characters, more than the 10 that are allowed"),
        (Limits(text=30), "makes an output of more than 30 characters"),
        (Limits(items=1), "The conversation has data of more than 1 items"),
    ],
    ids=range(3),
)
def test_limits_can_be_set(bounds: Limits, message: str) -> None:
    template = "{{ messages[0].content }}" + "x" * 30
    with pytest.raises(ChatError, match=message):
        apply_chat_template([[{"role": "user", "content": "abcdefg"}]], template, limits=bounds)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ '{} {a!r:>5}'.format(1, a='x') }}", "1   'x'"),
        ("{{ '{{}}'.format() }}", "{}"),
        ("{{ '%5.2f|%s|%%' % (1, 'a') }}", " 1.00|a|%"),
        ("{{ '%02d'|format(3) }}{{ '%(a)s'|format(a=1) }}", "031"),
        ("{{ [1, 2, 3]|sum }}{{ [{'a': 1}, {'a': 2}]|sum(attribute='a', start=1) }}", "64"),
        ("{{ ['a', 'b']|map('upper')|join('-') }}", "A-B"),
        ("{{ messages|map(attribute='role')|join }}", "user"),
        ("{{ {'b': 1, 'a': 2}|dictsort }}", "[('a', 2), ('b', 1)]"),
        ("{{ range(3)|list }}{{ range(5, 1, -2)|list }}{{ range(0)|list }}", "[0, 1, 2][5, 3][]"),
        ("{{ messages[0]['update'] }}{{ messages[0].update is defined }}", "keyFalse"),
        ("{% set ns = namespace(a=1, self=2) %}{% set ns.a = ns.a + 1 %}{{ ns.a }}{{ ns.self }}", "22"),
        (
            "{% for a in [1, 2, 3] %}{% if a == 2 %}{% continue %}{% endif %}{{ a }}{{ loop.last }}{% endfor %}",
            "1False3True",
        ),
        ("{% macro m(a, b=2) %}{{ a ~ b }}{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}", "1213"),
        ("{{ {'a': '<\u00e9>'}|tojson }}{{ [1, [2]]|tojson(indent=1)|length }}", '{"a": "<\u00e9>"}17'),
        ("{{ dict(a=1).items()|list }}{{ {'a': 1}|items|list }}", "[('a', 1)][('a', 1)]"),
        ("{% call(x) m2() %}{{ x }}{% endcall %}{% macro m2() %}{{ caller(5) }}{% endmacro %}", ""),
        ("{% filter upper %}a{{ 'b' }}{% endfilter %}{% set x %}c{% endset %}{{ x }}", "ABc"),
        ("{{ 'x' * 3 }}{{ [1] + [2] }}{{ 2 ** 10 }}{{ 7 % 4 }}", "xxx[1, 2]10243"),
    ],
    ids=range(18),
)
def test_what_templates_need_is_there(template: str, text: str) -> None:
    if "m2" in template:
        template = template[template.index("{% macro") :] + template[: template.index("{% macro")]
        text = "5"
    assert render(template) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ", r"is not valid Jinja \(line 1\)"),
        ("a\n{% if %}", r"is not valid Jinja \(line 2\)"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ("{{ missing.name }}", "fails: UndefinedError: 'missing' is undefined"),
        ("{{ {}['a']['b'] }}", "fails: UndefinedError"),
        ("{{ raise_exception('Not like this.') }}", "refuses this conversation: Not like this."),
        ("{{ {[]: 1} }}", "fails: TypeError"),
    ],
    ids=range(7),
)
def test_errors_of_templates(template: str, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        render(template)


def test_renderings_in_threads_do_not_share_a_clock() -> None:
    slow = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
    with ThreadPoolExecutor(2) as pool:
        stopped = pool.submit(render, slow, 0.3)
        assert pool.submit(render, "{% for a in range(3) %}{{ a }}{% endfor %}", 30.0).result() == "012"
        with pytest.raises(ChatError, match=r"within 0\.3 seconds"):
            stopped.result()
    assert limits.current_budget() is None


def test_an_old_jinja_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.jinja2, "__version__", "3.1.5")
    sandbox._environment.cache_clear()
    try:
        with pytest.raises(ChatError, match=r"need jinja2 3\.1\.6 or newer.*here is 3\.1\.5"):
            render("not compiled yet {{ 1 }}")
    finally:
        sandbox._environment.cache_clear()


def test_a_template_is_compiled_once() -> None:
    assert sandbox.compile_template("{{ 1 }} once") is sandbox.compile_template("{{ 1 }} once")


def test_long_conversations_are_quick() -> None:
    chat = [{"role": "user", "content": "word " * 200} for _ in range(2000)]
    template = (
        "{% macro show(m, all) %}{{ m.role ~ ': ' ~ m.content }}{% endmacro %}"
        "{% for m in messages %}{{ show(m, messages) }}\n{% endfor %}"
    )
    start = time.monotonic()
    text = apply_chat_template([chat], template, limits=Limits(seconds=30))[0][0]
    assert len(text) > 2_000_000 and time.monotonic() - start < 10
