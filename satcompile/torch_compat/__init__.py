"""Every private name of torch that satcompile uses, grouped by torch's own parts.

Each name has the reason for its use and the versions on which it was checked. No other code in the
project uses a name of torch that starts with an underscore, apart from ``torch._ops.OpOverload``,
the type of the operators that FX nodes call. A test checks this.

Checked on torch 2.13.0 (Python 3.11), 2.11.0 (Python 3.11 and 3.12), 2.14.1 (Python 3.11 and 3.13)
and 2.15.0 (Python 3.13 and 3.14): ``tests/torch_compat/test_torch_names.py`` found every name and
the fast tests passed. The versions beside each name are those on which its code was read.
"""
