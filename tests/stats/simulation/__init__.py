"""What the package says in words, against data whose truth is known: laws, questions, promises and the page of them.

`make test-stats` runs all of it and writes docs/statistics.md; a part of it runs with the tests.
"""
