"""Mutants of the RTL: how much of what can be wrong with it do the benches notice?

`python -m thermokron.sim.mutants` (or `make mutants`) changes one thing at a time in a copy of the
RTL's sources and runs the benches on what comes out. See docs/mutants.md.
"""
