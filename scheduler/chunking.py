"""How many prompt tokens a step takes while others decode.

A step lasts for all of its rows: who decodes waits for its next token as long as the step's prompts take. On
an H200 a prompt token of 8 billion parameters takes 27 µs, so a prompt of 1,000 tokens computed at once holds
everybody up for as long as four steps of decoding. Spread over a few steps it ends hardly later, and nobody
notices. When many prompts wait, though, they must be worked off faster than they come, and each step reads
all weights again: then a step takes a share of what there is, up to everything that fits.

    prompt tokens = whole budget                 nobody decodes: nobody is held up
                    max(calm, backlog / 4)       otherwise

A quarter, since whatever waits is then on its way within a few steps, and a prompt alone is never more than
one long step. The rule knows no phases and remembers nothing.
"""

_SHARE = 4  # of the backlog


def prompt_budget(budget: int, decodes: int, backlog: int, calm: int) -> int:
    """The most prompt tokens in the next step, 0 only where `decodes` take all of it.

    budget    tokens that fit into the step
    decodes   rows that decode in it, a token each; at most `budget`
    backlog   prompt tokens that wait to be computed on this worker
    calm      prompt tokens that may always join rows that decode; 0 for no such limit
    """
    left = budget - decodes
    if not (calm and decodes):
        return left
    return min(left, max(calm, backlog // _SHARE))
