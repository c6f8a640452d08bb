"""Templates that do not end, grow, recurse or want out of the sandbox: one line, in bounded time and memory."""

from __future__ import annotations

import itertools
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lit_gpt.errors import DataError, UserError
from lit_gpt.tokenizer import jinja_sandbox
from lit_gpt.tokenizer.chat_template import ChatTemplate
from lit_gpt.tokenizer.shipped_templates import SHIPPED, missing_tokens, template_source
from lit_gpt.tokenizer.tokenizer import Tokenizer
from tests.conftest import ROOT, TOKENIZER
from tests.work_counts import hang_limit

MESSAGES = [{"role": "user", "content": "Bonjour"}, {"role": "assistant", "content": "Oui"}]
MACRO = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
GROW = "{{% set n = namespace(x={}) %}}{{% for i in range(60) %}}{{% {} %}}{{% endfor %}}"
HOSTILE = {
    "a long range": "{% for i in range(10**12) %}{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}abcdefgh{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 10**10 }}",
    "a long list": "{{ ([0] * 10**10) | length }}",
    "a long text from the right": "{{ 10**10 * 'a' }}",
    "a large number": "{{ 10 ** 10 ** 10 }}",
    "a wide number": "{{ '%10000000000d' % 1 }}",
    "a wide format": "{{ '{:>10000000000}'.format(1) }}",
    "a wide format by a filter": "{{ '%10000000000d' | format(1) }}",
    "a width beside the format": "{{ '%*d' % (10**10, 1) }}",
    "a width given to the format": "{{ '{:>{w}}'.format(1, w=10**10) }}",
    "a centred text": "{{ 'a' | center(10**10) }}",
    "a padded text": "{{ 'a'.ljust(10**10) }}",
    "doubling": "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "replacing": "{% set a = 'a' * 100000 %}{{ (a.replace('a', a)).replace('a', a) }}",
    "replacing by a filter": "{% set a = 'a' * 100000 %}{{ a | replace('a', a) | replace('a', a) }}",
    "joining": "{% set a = 'a' * 100000 %}{{ ([a] * 100000) | join }}",
    "replacing what is written there": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "replacing in a block": "{% filter replace('a', 'b' * 100000) %}{{ 'a' * 100000 }}{% endfilter %}",
    "replacing in each": "{{ ['a' * 100000] | map('replace', 'a', 'b' * 100000) | list }}",
    "joining by a long text": "{{ ('x' * 100000).join(['a'] * 100000) }}",
    "joining attributes": "{{ messages | map(attribute='role') | join('x' * 100000000) }}",
    "a wide format of 1 GB": "{{ '{:>999999999}'.format(3) }}",
    "a width among the arguments": "{{ '{:>{w}}'.format(3, w='999999999') }}",
    "a format that repeats": "{{ ('{0}' * 100000).format('b' * 100000) }}",
    "a percent format that repeats": "{{ ('%(a)s' * 100000) % {'a': 'b' * 100000} }}",
    "a width by a star": "{{ '%*d' % (99999, 3) }}",
    "a safe format": "{{ ('{:>999999999}' | safe).format(3) }}",
    "bytes": "{{ ('a' * 100000).encode() }}",
    "characters to texts": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "tabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "indentation": "{{ ('\n' * 100000) | indent(100000, true, true) }}",
    "indented JSON": "{{ messages | tojson(indent=99999) }}",
    "lists of lists": GROW.format("[1]", "set n.x = [n.x, n.x]"),
    "objects of objects": GROW.format("1", "set n.x = dict(a=n.x, b=n.x)"),
    "doubling in a list": GROW.format("['a']", "set n.x = [n.x[0] ~ n.x[0]]"),
    "doubling a list": GROW.format("[1]", "set n.x = n.x + n.x"),
    "doubling by a macro": "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('aaaa') }}",
    "doubling by a block": GROW.format("'a'", "set n.x %}{{ n.x }}{{ n.x }}{% endset"),
    "a sum of lists": "{{ ([[0] * 1000] * 900) | sum(start=[]) }}",
    "a long search": "{{ range(99999) | select('in', range(99999) | list) | list }}",
    "a random text": "{{ [1, 2] | random }}",
    "much nonsense": "{{ lipsum(n=10**9) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursion that doubles": MACRO,
    "a loop that calls itself": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "the classes of Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a function": "{{ raise_exception.__globals__['json'] }}",
    "globals of a method": "{{ strftime_now.__self__.filters }}",
    "an attribute by a filter": "{{ ('' | attr('__class__')).mro() }}",
    "an attribute by a format": "{{ '{0.__class__.__mro__}'.format('') ~ 1 / 0 }}",
    "changing the messages": "{{ messages.append(1) }}",
    "another file": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}{{ os.getcwd() }}",
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TOKENIZER)


def peak_memory() -> int:
    """Of this process, in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_one_line(tokenizer, name, monkeypatch):
    monkeypatch.setattr(jinja_sandbox, "MOST_STEPS", 200_000)
    monkeypatch.setattr(jinja_sandbox, "MOST_SECONDS", 1.0)
    memory = peak_memory()
    with hang_limit(), pytest.raises((UserError, DataError)) as raised:
        ChatTemplate(tokenizer, HOSTILE[name]).render(MESSAGES)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
    assert peak_memory() - memory < 300_000


def clock_of(monkeypatch, seconds_between_looks):
    """Replaces the sandbox's clock by one that goes on by `seconds_between_looks` each time it is looked at."""
    looks = itertools.count()
    clock = SimpleNamespace(thread_time=lambda: next(looks) * seconds_between_looks)
    monkeypatch.setattr(jinja_sandbox, "time", clock)


def test_steps_and_seconds_both_end_an_endless_loop(tokenizer, monkeypatch):
    endless = ChatTemplate(tokenizer, HOSTILE["loops in loops"])
    clock_of(monkeypatch, 0)
    with hang_limit(), pytest.raises(DataError, match=f"does not come to an end: {jinja_sandbox.MOST_STEPS:,} steps"):
        endless.render(MESSAGES)
    clock_of(monkeypatch, jinja_sandbox.MOST_SECONDS / 4)
    with pytest.raises(DataError, match=f"does not come to an end: {5 * jinja_sandbox._STEPS_BETWEEN_LOOKS} steps"):
        endless.render(MESSAGES)


def test_long_conversations_are_within_the_limits(tokenizer, monkeypatch):
    clock_of(monkeypatch, 0)
    source = template_source("saiga", tokenizer)
    assert len(ChatTemplate(tokenizer, source).render(MESSAGES * 10_000)) > 100_000


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_templates_render_with_what_the_tokenizer_has(tokenizer, name):
    source = template_source(name, tokenizer)
    text = ChatTemplate(tokenizer, source).render(MESSAGES[:1])
    assert "Bonjour" in text
    missing = missing_tokens(source, tokenizer)
    assert missing == {"chatml": ["<|im_end|>", "<|im_start|>"], "llama3": missing}.get(name, [])
    assert name != "llama3" or missing == ["<|end_header_id|>", "<|eot_id|>", "<|start_header_id|>"]
    with pytest.raises(UserError, match=f"{name} has the roles"):
        ChatTemplate(tokenizer, source).render([{"role": "tool", "content": "a"}])


def test_a_template_by_file_or_not_at_all(tokenizer, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text("{{ messages[0].content }}")
    assert template_source(str(path), tokenizer) == "{{ messages[0].content }}"
    path.write_bytes(b"\xe9")
    with pytest.raises(DataError, match="not UTF-8"):
        template_source(str(path), tokenizer)
    with pytest.raises(UserError, match="neither a file nor one of tokenizer, chatml, impruver"):
        template_source("chatlm", tokenizer)
    with pytest.raises(UserError, match="has no chat template: give --template one of chatml"):
        template_source("tokenizer", tokenizer)


def test_rendering_does_not_import_transformers():
    code = "import sys, lit_gpt.tokenizer.shipped_templates; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
