"""docs/findings.md, made of the committed measurements on smollm2-135m-q4, of the family of variants
and of nothing else.

evidence   leaderboards/results/smollm2-135m-q4 -> runs, tables of the probe, tables of losses
runs       a run -> its sentences and tables, in the words of `compare`
attention  tables of the probe -> theirs
losses     tables of losses by position -> theirs
family     leaderboards/results/family -> docs/variants.md, and its part of the page
page       what was asked, the five sentences, every finding, what was not shown, what is not measured yet
"""
