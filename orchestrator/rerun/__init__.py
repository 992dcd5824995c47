"""A recorded run, or a whole sweep, trained again and compared with its record.

`recorded` reads what was written down, `changes` says what is otherwise here, `repeat` trains, `compare` holds the numbers
against each other, `show` prints.
"""
