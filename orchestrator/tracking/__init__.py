"""MLflow: the only package that imports it.

What happens to a sweep's runs is written to a file first, in order (`spool`), and delivered from there by a thread of its
own (`tracker`) to the store that the environment names (`target`, `store`). So a store that is slow or away neither slows
a sweep nor loses a record, and the thread that Ctrl-C interrupts never holds a database's lock.
"""
