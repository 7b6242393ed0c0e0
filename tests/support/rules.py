"""Tests of tables of rules, without a parser: what a rule refuses, and what repairs that.

A test file has ``TABLES``, each with parts of options of which it refuses none, and
``EXAMPLES`` by table: the line, what is refused with it, and what repairs that.
"""

from argparse import Namespace

import pytest

from src.checks.values import AtLeast, IsFile, OneOf, Options, Unused, check
from src.errors import UserError


def changed(parts, changes=None):
    """Accepted options with some changed."""
    return Options(Namespace(**(changes or {})), *parts)


def own_examples(rule, accepted):
    """What a rule refuses by its kind, and what repairs that."""
    for name in rule.names:
        if isinstance(rule, AtLeast):
            yield {name: rule.least - 1}, {name: rule.least}
        elif isinstance(rule, OneOf):
            yield {name: "nonsense"}, {name: next(iter(rule.known))}
        elif isinstance(rule, IsFile):
            yield {name: "nowhere"}, {name: __file__}
        elif isinstance(rule, Unused):
            yield {name: "other"}, {name: getattr(accepted, name)}


def assert_refuses_and_accepts(rule, parts, examples):
    """A rule refuses something, of its own kind or of the examples, and accepts it repaired."""

    def refuses(changes):
        return any(rule.refuses(option, changed(parts, changes)) for option in rule.names)

    examples = [*own_examples(rule, changed(parts)), *(example[1:] for example in examples)]
    refused = [(bad, repair) for bad, repair in examples if refuses(bad)]
    assert refused
    assert not any(refuses({**bad, **repair}) for bad, repair in refused)


def assert_says(table, parts, line, bad, repair):
    """A table refuses what is bad with the line, and nothing once it is repaired."""
    with pytest.raises(UserError) as error:
        check(table, changed(parts, bad))
    assert str(error.value).startswith(line)
    check(table, changed(parts, {**bad, **repair}))


def rule_tests(tables, examples):
    """The tests of a file's tables: options as usual, every rule, every message."""
    rules = [(name, rule) for name, (table, _) in tables.items() for rule in table]
    messages = [(name, *example) for name, some in examples.items() for example in some]

    @pytest.mark.parametrize("name", tables)
    def test_usual_options_are_accepted(name):
        table, parts = tables[name]
        check(table, changed(parts))

    @pytest.mark.parametrize(
        "name, rule", rules, ids=[f"{name}-{rule.names[0]}" for name, rule in rules]
    )
    def test_every_rule_refuses_and_accepts(name, rule):
        assert_refuses_and_accepts(rule, tables[name][1], examples.get(name, ()))

    @pytest.mark.parametrize(
        "name, line, bad, repair", messages, ids=[message[1][:60] for message in messages]
    )
    def test_a_refusal_names_the_option_and_what_to_do(name, line, bad, repair):
        assert_says(*tables[name], line, bad, repair)

    return (
        test_usual_options_are_accepted,
        test_every_rule_refuses_and_accepts,
        test_a_refusal_names_the_option_and_what_to_do,
    )
