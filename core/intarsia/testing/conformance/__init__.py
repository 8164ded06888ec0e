"""The conformance kit: what a plugin must do, as requirements that run without pytest.

`requirements` says what there is for each kind of component, `runner` runs them in processes of their own,
each with a deadline, and `intarsia.testing.suites` makes pytest classes of them. A requirement that belongs
to a capability may be refused, by a typed error and nothing else.
"""
