"""Files as chance, or somebody, damages them."""

import random


def mutations(content, number):
    """The content with flipped bits, cut, swapped, doubled and written over, the same ones each time."""
    chance = random.Random(0)
    for place in range(number):
        damaged = bytearray(content)
        start, length = chance.randrange(len(content)), chance.choice((1, 4, 64))
        match place % 6:
            case 0 | 1:
                for _ in range(length):
                    damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
            case 2:
                del damaged[start:]
            case 3:
                del damaged[start : start + length]
            case 4:
                damaged[start : start + length] = b"\xff" * length
            case 5:
                damaged[start:start] = damaged[-length:]
        if bytes(damaged) != content:
            yield bytes(damaged)
