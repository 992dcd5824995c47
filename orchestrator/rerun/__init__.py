"""A recorded run, or a whole sweep, trained again and compared with its record.

`recorded` reads what was written down, `changes` says what is otherwise here, `prepare` puts both together, `repeat` trains,
`compare` holds the numbers against each other, `seeds` repeats with other seeds, `show` prints.
"""
