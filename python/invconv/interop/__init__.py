"""Adapters that make a bijection of :mod:`invconv.flows` a layer of another flow library.

One module for each library, which imports it: ``invconv.interop.nflows``, ``normflows``,
``distributions`` (torch's own), ``zuko``, ``pyro``, ``freia`` and ``survae``. In each the class is
named as the class of the library that it becomes; ``docs/interop.md`` shows how they are used.
"""
