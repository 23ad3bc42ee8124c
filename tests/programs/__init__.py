"""Random training programs made of real operators of torch, and what must hold for each.

A program is data (``program.py``) that prints as a script. Genes, lists of small numbers, decide
which (``builder.py``, ``operators/``): they shrink well. Each is checked at two depths: its planned
graphs interpreted, operator by operator (``interpreted.py``, fast), or compiled and measured
(``compiled.py``). ``python -m tests.programs --examples 10000`` runs many.
"""
