"""Every private name of torch that satcompile touches, by torch's own parts.

Each stands here with the reason and the versions on which it was checked. Nothing else in
the project uses a name of torch that starts with an underscore, apart from ``torch._ops.OpOverload``,
which is what FX nodes are made of; a test looks.

Checked on torch 2.13.0 (Python 3.11), 2.11.0 (Python 3.11 and 3.12), 2.14.1 (Python 3.11 and 3.13)
and 2.15.0 (Python 3.13 and 3.14), where ``tests/torch_compat/test_torch_names.py`` found every name and
the fast tests passed. Beside each name stand the versions on which its code was read.
"""
