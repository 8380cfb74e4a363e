"""Measuring, and showing what was measured.

``timing`` has the clocks and the one timing loop, ``machine`` devices, ``runs`` what is run. On them
stand ``sweep`` with ``budget`` and ``figure3`` (``mbt-fast profile``), ``recommend`` with
``comparison`` (``mbt-fast bench``) and ``trace``. ``plots`` and ``page`` draw and write, for other
programs too.
"""
